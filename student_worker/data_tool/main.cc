// distill-data: looks at data sets, without a coordinator and without LibTorch. Flags: --help and docs/cli.md.
#include <CLI/CLI.hpp>

#include <algorithm>

#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/service/service_flags.h"
#include "student_worker/data_tool/data_check.h"

namespace distill {
namespace {

int Main(int argc, char** argv) {
  CLI::App app("distill-data: looks at data sets before a job does. Exit code 0: nothing is wrong; 1: something is.");
  app.set_version_flag("--version", VersionString(), "Print the version and exit");
  app.require_subcommand(1);
  DataCheckOptions options;
  options.threads = std::max(1u, std::thread::hardware_concurrency());
  std::string folder;
  SplitPlan split;
  CLI::App* const check = app.add_subcommand(
      "check", "reads every picture once and tells sizes, classes, mean and std, and all that is odd or wrong");
  check->add_option("FOLDER", folder, "the data set: what data.path of the job file will name")->required();
  check->add_option("--format", options.data.format, "data.format of the job file")
      ->check(CLI::IsMember({"idx", "cifar", "image_folder", "image_list", "segmentation_folder"}))
      ->required();
  check->add_option("--data-root", options.data_root,
                    "folder that links may lead to: --data-root of the students (default: FOLDER itself)");
  check->add_option("--classes", options.classes, "num_classes of the student; without it any class goes");
  check->add_option("--unlabelled", options.data.unlabelled, "data.unlabelled of the job file");
  check->add_option("--ignore-label", options.data.ignore_label, "data.ignore_label of the job file")
      ->capture_default_str()
      ->check(CLI::Range(0, 255));
  std::vector<std::string> train_files, test_files;
  check
      ->add_option("--train-pairs", train_files,
                   "IMAGES LABELS [LIST]: data.pairs.train of the job file (quote the stars)")
      ->expected(2, 3);
  check->add_option("--test-pairs", test_files, "data.pairs.test of the job file, likewise")->expected(2, 3);
  std::vector<std::string> label_map;
  check->add_option("--label-map", label_map, "data.label_map of the job file: ID:CLASS ID:CLASS ...");
  check->add_flag("--reduce-zero-label", options.data.reduce_zero_label, "data.reduce_zero_label of the job file");
  CLI::Option* const share =
      check->add_option("--split-test", split.test, "data.split.test of the job file")->check(CLI::Range(0.0, 1.0));
  check->add_option("--split-by", split.by, "data.split.by of the job file")
      ->check(CLI::IsMember({"class", "image"}))
      ->needs(share);
  check->add_option("--split-seed", split.seed, "data.split.seed of the job file")->needs(share);
  check->add_option("--threads", options.threads, "threads that read and decode (default: one a core)")
      ->check(CLI::Range(1, 1024));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  InitLogging({.level = LogLevel::kError});  // what is odd stands in the report
  if (share->count() > 0) options.data.split = split;
  for (const auto& [words, pairs] :
       {std::pair{&train_files, &options.data.train_files}, {&test_files, &options.data.test_files}}) {
    if (words->empty()) continue;
    *pairs = SplitFiles{.images = (*words)[0], .labels = (*words)[1], .list = words->size() > 2 ? (*words)[2] : ""};
  }
  for (const std::string& entry : label_map) {
    unsigned id = 0, label = 0;
    char rest = 0;
    if (std::sscanf(entry.c_str(), "%3u:%3u%c", &id, &label, &rest) != 2 ||
        !options.data.label_map.emplace(id, label).second) {
      std::fprintf(stderr, "distill-data: --label-map '%s' is no ID:CLASS, or names its id again\n", entry.c_str());
      return kExitUsage;
    }
  }
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path path = fs::absolute(folder, error);
  // An archive lies in a folder.
  if (options.data_root.empty()) options.data_root = fs::is_regular_file(path, error) ? path.parent_path() : path;
  options.data.path = path;
  const StatusOr<DataCheck> result = CheckData(options);
  if (!result.ok()) {
    std::fprintf(stderr, "distill-data: %s\n", std::string(result.status().message()).c_str());
    return kExitUsage;
  }
  std::fputs(result->text.c_str(), stdout);
  return result->sound ? kExitOk : kExitBadData;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
