// docs/services.md names every flag of the services and every metric they expose.
#include <gtest/gtest.h>

#include <regex>

#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

const std::string& Doc() {
  static const std::string text = ReadFileOrEmpty(std::string(DISTILL_SOURCE_DIR) + "/docs/services.md");
  return text;
}

TEST(ServicesDocTest, NamesEveryFlag) {
  for (const std::string program : {"distill-coordinator", "distill-teacher", "distill-student"}) {
    const CommandResult help =
        RunCommand({std::string(DISTILL_BIN_DIR) + "/" + program, "--help"}, std::chrono::seconds(30));
    ASSERT_EQ(help.exit_code, 0) << help.err;
    const std::regex flag("(^|[ ,])(--[a-z][-a-z]*)");
    int found = 0;
    for (std::sregex_iterator it(help.out.begin(), help.out.end(), flag), end; it != end; ++it, ++found) {
      EXPECT_NE(Doc().find("`" + (*it)[2].str() + "`"), std::string::npos) << program << " " << (*it)[2];
    }
    EXPECT_GT(found, 5) << help.out;
  }
}

TEST(ServicesDocTest, NamesEveryMetric) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 1));
  const std::regex metric("# TYPE (distill_[a-z_]+) ");
  int found = 0;
  for (const std::string id : {"coordinator", "t0", "s0"}) {
    const std::string text = cluster.HttpGet(id, "/metrics");
    for (std::sregex_iterator it(text.begin(), text.end(), metric), end; it != end; ++it, ++found) {
      EXPECT_NE(Doc().find("`" + (*it)[1].str() + "`"), std::string::npos) << (*it)[1];
    }
  }
  EXPECT_GT(found, 20);
}

}  // namespace
}  // namespace distill::testing
