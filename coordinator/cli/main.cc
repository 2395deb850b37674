// distillctl: the command line of the distillation service. Documented in docs/cli.md.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <clocale>
#include <exception>
#include <iostream>
#include <sstream>
#include <vector>

#include "common/log.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/options.h"
#include "coordinator/cli/printing.h"

namespace distill::cli {
namespace {

// "; did you mean 'list'?" for the first word that is no command.
std::string CommandHint(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  for (const std::string& word : app.remaining()) {
    if (!word.empty() && word[0] != '-') return StrCat("no command is called '", word, "'", DidYouMean(word, names));
  }
  return "";
}

int Main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "");

  Options options;
  CLI::App app{"", "distillctl"};
  DeclareCommandLine(&app, &options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      std::ostringstream text;
      const int code = app.exit(error, text, text);
      Print(text.str());
      return code == 0 && CloseOutput() ? kExitOk : kExitInternal;
    }
    const std::string hint = app.get_subcommands().empty() ? CommandHint(app) : "";
    PrintError(absl::InvalidArgumentError(hint.empty() ? error.what() : hint));
    PrintNote("run 'distillctl --help' or 'distillctl COMMAND --help'");
    return kExitUsage;
  }
  // The libraries' own log lines (a refused TLS handshake) would stand beside our message.
  InitLogging({.level = options.verbose ? LogLevel::kWarning : LogLevel::kError, .service = "distillctl"});
  const ExitCode code = RunCommand(app.get_subcommands().front()->get_name(), options, app);
  return CloseOutput() || code != kExitOk ? code : kExitInternal;
}

}  // namespace
}  // namespace distill::cli

int main(int argc, char** argv) {
  try {
    return distill::cli::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return distill::kExitInternal;
  }
}
