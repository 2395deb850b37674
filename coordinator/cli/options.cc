#include "coordinator/cli/options.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdlib>
#include <memory>

#include "common/service/service_flags.h"
#include "common/str_cat.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

constexpr char kFooter[] = R"(Exit codes:
  0    done; for watch and submit --watch: the job succeeded
  1    internal error
  2    wrong command line, or a file that it names cannot be read
  3    the job file was refused
  4    the watched job failed
  5    the watched job was cancelled
  6    no such job or model
  7    the coordinator does not answer
  8    the coordinator refuses the credentials
  130  interrupted while watching; the job goes on
Global flags (--coordinator, --output, ...): distillctl --help)";

// $XDG_CONFIG_HOME or ~/.config; empty when neither is known.
std::string DefaultConfigFile() {
  const char* xdg = std::getenv("XDG_CONFIG_HOME");
  if (xdg != nullptr && xdg[0] == '/') return StrCat(xdg, "/distill/config.toml");
  const char* home = std::getenv("HOME");
  if (home != nullptr && home[0] == '/') return StrCat(home, "/.config/distill/config.toml");
  return "";
}

// CLI11 lets the file win over the environment. For a file that lies in the home folder and is easily forgotten the
// other order is the expected one: what the environment sets is left out of the file's values.
class EnvironmentFirst : public CLI::ConfigTOML {
 public:
  explicit EnvironmentFirst(const CLI::App* app) : app_(app) {}
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> items = CLI::ConfigTOML::from_config(input);
    std::erase_if(items, [this](const CLI::ConfigItem& item) {
      const CLI::Option* option = item.parents.empty() ? app_->get_option_no_throw("--" + item.name) : nullptr;
      if (option == nullptr || option->get_envname().empty()) return false;
      const char* value = std::getenv(option->get_envname().c_str());
      return value != nullptr && value[0] != '\0';
    });
    return items;
  }

 private:
  const CLI::App* const app_;  // Not owned: it owns this formatter.
};

}  // namespace

bool ParseImageSize(const std::string& text, uint32_t* height, uint32_t* width) {
  const size_t x = text.find('x');
  if (x == std::string::npos) return false;
  const auto parse = [](const std::string& digits, uint32_t* value) {
    if (digits.empty() || digits.size() > 5 || digits.find_first_not_of("0123456789") != std::string::npos)
      return false;
    *value = static_cast<uint32_t>(std::stoul(digits));
    return *value >= 1 && *value <= 65535;
  };
  return parse(text.substr(0, x), height) && parse(text.substr(x + 1), width);
}

void DeclareCommandLine(CLI::App* app, Options* options) {
  app->description("distillctl: submit distillation jobs to a coordinator and follow them");
  app->footer(kFooter);
  app->require_subcommand(1);
  app->fallthrough();  // global flags may stand behind the command
  app->set_version_flag("--version", VersionString(), "Print the version and exit");
  app->set_help_all_flag("--help-all", "Print the help of all commands and exit");
  app->set_config("--config", DefaultConfigFile(), "File with defaults for the global flags (TOML)")
      ->envname("DISTILL_CONFIG");
  app->config_formatter(std::make_shared<EnvironmentFirst>(app));
  app->allow_config_extras(CLI::config_extras_mode::error);

  app->add_option("--coordinator", options->coordinator, "host:port of the coordinator")
      ->envname("DISTILL_COORDINATOR")
      ->capture_default_str();
  app->add_option("--timeout", options->timeout_text,
                  "Time for a call, for the retries of submit and for reconnecting while following: 20s, 500ms, 2m")
      ->capture_default_str()
      ->check(CLI::Validator(
          [options](std::string& text) -> std::string {
            const auto parsed = ParseDuration(text);
            if (!parsed.has_value())
              return StrCat("'", text, "' is not a duration; write for example 20s, 500ms or 2m");
            options->timeout = *parsed;
            return "";
          },
          "DURATION"));
  app->add_option("-o,--output", options->output, "table for people, json for scripts")
      ->capture_default_str()
      ->check(CLI::IsMember({"table", "json"}));
  app->add_option("--color", options->color, "auto colours terminals only and obeys NO_COLOR")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "always", "never"}));
  app->add_flag("-q,--quiet", options->quiet, "Print only what was asked for: ids, no hints, no progress");
  app->add_flag("-v,--verbose", options->verbose, "Print request ids and attempts to standard error");
  AddSecurityFlags(app, &options->security);

  CLI::App* submit = app->add_subcommand("submit", "Send a job file to the coordinator");
  submit->add_option("FILE", options->file, "Job file (YAML, see docs/job.md); - reads standard input")->required();
  submit->add_flag("--watch", options->watch, "Follow the job until it ends");
  submit->add_flag("--dry-run", options->dry_run, "Validate, print the expanded plan and store nothing");
  submit
      ->add_option("--set", options->overrides,
                   "Replace a value of the job file before validation: --set seed=3 (repeatable)")
      ->type_name("KEY=VALUE")
      ->expected(1)
      ->take_all()
      ->check([](const std::string& text) {
        const size_t equals = text.find('=');
        return equals == std::string::npos || equals == 0 ? StrCat("'", text, "' is not KEY=VALUE") : std::string();
      });
  submit
      ->add_option("--request-id", options->request_id,
                   "The same id with the same file gives the same job, however often it is sent; default: random")
      ->check([](const std::string& text) {
        return text.empty() || text.size() > 128 ? std::string("a request id has 1 to 128 bytes") : std::string();
      });
  submit->add_option("--name", options->name, "Name of the job, instead of the file's");

  CLI::App* list = app->add_subcommand("list", "List jobs, newest first");
  list->add_option("--limit", options->limit, "At most this many jobs; default: 100")->check(CLI::Range(1, 1000));
  list->add_option("--state", options->states, "Only jobs in this state (repeatable)")
      ->expected(1)
      ->take_all()
      ->check(CLI::IsMember({"queued", "running", "succeeded", "failed", "cancelled"}));

  const auto add_job = [options](CLI::App* command) {
    command
        ->add_option("JOB", options->job,
                     "Id of the job, or its name (then the one that has not ended, else the newest)")
        ->required();
  };
  CLI::App* describe = app->add_subcommand("describe", "Show a job: state, progress, results, files, plan");
  add_job(describe);
  add_job(app->add_subcommand("file", "Print the file that a job was submitted as, with its overrides"));
  CLI::App* watch = app->add_subcommand("watch", "Follow a job until it ends");
  add_job(watch);
  CLI::App* logs = app->add_subcommand("logs", "Print a job's event log");
  add_job(logs);
  logs->add_flag("-f,--follow", options->follow, "Go on printing until the job ends");
  logs->add_option("--after", options->after, "Only events with a larger sequence number");
  CLI::App* cancel = app->add_subcommand("cancel", "Ask a job to stop; its students write a checkpoint first");
  add_job(cancel);
  cancel->add_option("--reason", options->reason, "Kept with the job");
  cancel->add_flag("--wait", options->wait, "Return when the job has stopped");

  CLI::App* resume =
      app->add_subcommand("resume", "Queue a failed or cancelled job again; it goes on from its newest checkpoint");
  add_job(resume);
  resume->add_flag("--watch", options->watch, "Follow the job until it ends");

  app->add_subcommand("fleet", "List teachers and students");
  CLI::App* uncordon = app->add_subcommand("uncordon", "Give jobs again to a worker that failed some by its own fault");
  uncordon->add_option("WORKER", options->worker, "Id of the worker, as distillctl fleet shows it")->required();

  const auto add_network = [options](CLI::App* command) {
    command
        ->add_option("MODEL", options->model,
                     "Zoo architecture (cifar_resnet20), or name of a served model or an archive")
        ->required();
    command->add_option("--width", options->width, "Channels of the first convolution; default: the architecture's")
        ->check(CLI::Range(1, 65535));
    command->add_option("--classes", options->classes, "Classes of the head")->check(CLI::Range(1, 1000000));
    command->add_option("--channels", options->channels, "Channels of the input image")->check(CLI::Range(1, 65535));
    command->add_option("--image", options->image, "Height and width of the input image: 28x28")
        ->type_name("HxW")
        ->check([](const std::string& text) {
          uint32_t height = 0, width = 0;
          return ParseImageSize(text, &height, &width) ? std::string()
                                                       : StrCat("'", text, "' is not HxW, for example 28x28");
        });
  };
  add_network(app->add_subcommand(
      "taps", "List the taps of a network of the zoo, of a served teacher or of a student's archive, with shapes"));
  add_network(app->add_subcommand("model", "Show a network's parameters and multiply-adds, and those of its prefixes"));

  CLI::App* history = app->add_subcommand("history", "Print the stored progress points of a job");
  add_job(history);
  history->add_flag("--csv", options->csv, "All columns as comma-separated values");
  history->add_option("--limit", options->limit, "Only the newest points; default: all")
      ->check(CLI::Range(1, 100000000));

  CLI::App* results = app->add_subcommand("results", "Compare jobs: accuracies, parameters, sizes, wall time, files");
  results->add_option("JOB", options->jobs, "Ids or names of jobs; * and ? stand for parts of them")->required();

  CLI::App* report = app->add_subcommand("report", "Write all about a job into one HTML file, with plots");
  add_job(report);
  report->add_option("-o,--out", options->out, "File to write; - is standard output; default: JOB-report.html")
      ->type_name("FILE");
  report->add_flag("--force", options->force, "Replace the file when it exists");

  CLI::App* completion =
      app->add_subcommand("completion", "Print a completion script: source <(distillctl completion bash)");
  completion->add_option("SHELL", options->shell, "bash")->required()->check(CLI::IsMember({"bash"}));
}

}  // namespace distill::cli
