// Names in the documentation are those of the programs: commands of distillctl with their flags, and threads.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

std::vector<std::filesystem::path> FilesBelow(const std::vector<std::string>& folders,
                                              const std::set<std::string>& kinds) {
  std::vector<std::filesystem::path> files;
  for (const std::string& folder : folders) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(std::string(DISTILL_SOURCE_DIR) + "/" + folder)) {
      if (kinds.count(entry.path().extension().string()) > 0) files.push_back(entry.path());
    }
  }
  return files;
}

// What is written as code in a Markdown text: lines of fenced blocks, and `spans`.
std::vector<std::string> CodeOf(const std::string& markdown) {
  std::vector<std::string> code;
  bool fenced = false;
  std::istringstream lines(markdown);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("```") != std::string::npos) {
      fenced = !fenced;
    } else if (fenced) {
      code.push_back(line.substr(0, line.find(" #")));
    } else {
      const std::regex span("`([^`]+)`");
      for (std::sregex_iterator it(line.begin(), line.end(), span), end; it != end; ++it)
        code.push_back((*it)[1].str());
    }
  }
  return code;
}

// A command in the documentation that does not exist costs each reader a try.
TEST(CommandsDocTest, EveryCommandAndFlagExists) {
  const auto help_of = [](const std::string& command) {
    static std::map<std::string, std::string> known;
    if (known.count(command) == 0) {
      std::vector<std::string> words = {std::string(DISTILL_BIN_DIR) + "/distillctl"};
      if (!command.empty()) words.push_back(command);
      words.push_back("--help");
      const CommandResult help = RunCommand(words, std::chrono::seconds(30));
      known[command] = help.exit_code == 0 ? help.out : "";
    }
    return known[command];
  };
  ASSERT_NE(help_of(""), "");
  std::vector<std::filesystem::path> files = FilesBelow({"docs", "deploy", "examples"}, {".md"});
  files.push_back(std::string(DISTILL_SOURCE_DIR) + "/README.md");
  int commands = 0, flags = 0;
  for (const auto& file : files) {
    for (const std::string& code : CodeOf(ReadFileOrEmpty(file.string()))) {
      // "distillctl [--flag [value]]... command ...", up to the end of the command of a shell.
      const std::regex call(R"((^|[ (/])distillctl((?:\s+--?[a-z-]+(?:[= ][^ -][^ ]*)?)*?)\s+([a-z]+)\b([^|;&)]*))");
      for (std::sregex_iterator it(code.begin(), code.end(), call), end; it != end; ++it, ++commands) {
        const std::string command = (*it)[3].str();
        const std::string help = help_of(command);
        EXPECT_NE(help, "") << file << ": no command '" << command << "' in: " << code;
        const std::string words = (*it)[2].str() + " " + (*it)[4].str();
        const std::regex flag("(^|[ \\[])(--[a-z][a-z-]*)");
        for (std::sregex_iterator word(words.begin(), words.end(), flag), none; word != none; ++word, ++flags) {
          const std::string name = (*word)[2].str();
          EXPECT_TRUE(help.find(name) != std::string::npos || help_of("").find(name) != std::string::npos)
              << file << ": distillctl " << command << " has no " << name << ", in: " << code;
        }
      }
    }
  }
  EXPECT_GT(commands, 40);
  EXPECT_GT(flags, 8);
}

TEST(ThreadsDocTest, NamesEveryThread) {
  const std::string doc = ReadFileOrEmpty(std::string(DISTILL_SOURCE_DIR) + "/docs/threads.md");
  int found = 0;
  for (const auto& file : FilesBelow({"common", "coordinator", "student_worker", "teacher_server"}, {".cc", ".h"})) {
    const std::string text = ReadFileOrEmpty(file.string());
    const std::regex name(R"re((?:pthread_setname_np\([^;"]*|Together\(|LeaderDoes\(|Ticker[^;"]*)"([a-z][a-z-]*)")re");
    for (std::sregex_iterator it(text.begin(), text.end(), name), end; it != end; ++it, ++found) {
      EXPECT_NE(doc.find("`" + (*it)[1].str()), std::string::npos) << file << ": thread " << (*it)[1];
    }
  }
  EXPECT_GT(found, 15);
}

}  // namespace
}  // namespace distill::testing
