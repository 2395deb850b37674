// Thousands of damaged job files: each is expanded, or refused with problems that have a place in it.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "common/utf8.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"
#include "tests/harness/mutation.h"

namespace distill::testing {
namespace {

TEST(MutatedJobFileTest, AFileIsExpandedOrItsProblemsHavePlaces) {
  Mutator mutator(4);
  const FleetView fleet = Fleet();
  int expanded = 0;
  for (int round = 0; round < 2000; ++round) {
    const std::string yaml = mutator.Mutate(round % 2 == 0 ? kExplicitJob : kPresetJob);
    const uint32_t lines = 1 + static_cast<uint32_t>(std::count(yaml.begin(), yaml.end(), '\n'));
    const ExpandedJob job = ExpandJobFile({yaml, "job.yaml", {}}, fleet);
    if (job.problems.empty()) {
      ++expanded;
      EXPECT_FALSE(job.plan.stages.empty()) << "round " << round << "\n" << yaml;
      continue;
    }
    for (const JobProblem& problem : job.problems) {
      EXPECT_EQ(ReplaceInvalidUtf8(problem.text), problem.text) << "round " << round << "\n" << yaml;
      EXPECT_FALSE(problem.text.empty()) << "round " << round << "\n" << yaml;
      EXPECT_LE(problem.mark.line, lines) << "round " << round << ": " << problem.text << "\n" << yaml;
    }
  }
  EXPECT_GT(expanded, 0) << "no damage was harmless: the test tries too little";
}

}  // namespace
}  // namespace distill::testing
