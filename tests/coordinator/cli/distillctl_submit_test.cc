// distillctl submit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <string>

#include "common/exit_codes.h"
#include "tests/coordinator/cli/distillctl_fixture.h"

namespace distill::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class DistillctlSubmitTest : public DistillctlFixture {};

TEST_F(DistillctlSubmitTest, SubmitSendsFileOverridesAndRequestId) {
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  const ChildResult result =
      Run({"submit", file, "--set", "seed=3", "--set", "students=1", "--name", "other", "--request-id", "r-1"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "submitted job j-1 (fashion)\n");
  EXPECT_EQ(result.err, "follow it: distillctl watch j-1\n");
  ASSERT_EQ(service_.submitted().size(), 1u);
  const v1::SubmitJobRequest request = service_.submitted()[0];
  EXPECT_EQ(request.yaml(), "name: fashion\n");
  EXPECT_EQ(request.file_name(), file);
  EXPECT_EQ(request.request_id(), "r-1");
  EXPECT_FALSE(request.dry_run());
  EXPECT_THAT(request.overrides(), ElementsAre("seed=3", "students=1", "name=other"));
}

TEST_F(DistillctlSubmitTest, SubmitMakesARandomRequestIdEachTime) {
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  const ChildResult first = Run({"submit", "-v", file});
  Run({"submit", file});
  ASSERT_EQ(service_.submitted().size(), 2u);
  const std::string id = service_.submitted()[0].request_id();
  EXPECT_TRUE(std::regex_match(id, std::regex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")))
      << id;
  EXPECT_NE(id, service_.submitted()[1].request_id());
  EXPECT_THAT(first.err, HasSubstr(id));
}

TEST_F(DistillctlSubmitTest, SubmitQuietPrintsTheIdAndJsonTheAnswer) {
  service_.submit_response.set_existed(true);
  v1::JobFileProblem* warning = service_.submit_response.add_warnings();
  warning->set_line(2);
  warning->set_column(7);
  warning->set_text("seed is 0\x1b[2J");
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  const ChildResult quiet = Run({"submit", "-q", file});
  EXPECT_EQ(quiet.out, "j-1\n");
  EXPECT_EQ(quiet.err, "warning: " + file + ":2:7: seed is 0\\x1b[2J\n");
  EXPECT_THAT(Run({"submit", file}).out, HasSubstr("was submitted before: job j-1"));
  const json answer = json::parse(Run({"submit", file, "--output", "json"}).out);
  EXPECT_EQ(answer["job_id"], "j-1");
  EXPECT_EQ(answer["existed"], true);
  EXPECT_EQ(answer["plan"]["stages"].size(), 3u);
}

TEST_F(DistillctlSubmitTest, SubmitReadsStandardInput) {
  StartServer();
  EXPECT_EQ(Run({"submit", "-"}, {.input = "name: piped\n"}).exit_code, kExitOk);
  ASSERT_EQ(service_.submitted().size(), 1u);
  EXPECT_EQ(service_.submitted()[0].yaml(), "name: piped\n");
  EXPECT_EQ(service_.submitted()[0].file_name(), "<stdin>");
}

TEST_F(DistillctlSubmitTest, SubmitRetriesWithTheSameRequestId) {
  service_.Fail(grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting"), 3);
  StartServer();
  const ChildResult result = Run({"submit", "--timeout", "60s", Write("job.yaml", "name: fashion\n")});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.err, HasSubstr("is not ready (starting); try again; trying again"));
  const auto requests = service_.submitted();
  ASSERT_EQ(requests.size(), 4u);
  for (const auto& request : requests) EXPECT_EQ(request.request_id(), requests[0].request_id());
}

TEST_F(DistillctlSubmitTest, SubmitWaitsForACoordinatorThatIsStarting) {
  UseDeadAddress();
  auto child = Start({"submit", "--timeout", "60s", Write("job.yaml", "name: fashion\n")});
  ASSERT_TRUE(child->WaitForError("trying again"));
  StartServer();
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(service_.submitted().size(), 1u);
}

TEST_F(DistillctlSubmitTest, DryRunPrintsThePlan) {
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  const ChildResult result = Run({"submit", "--dry-run", file});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("Plan of fashion (preset sskd)\n"), HasSubstr("cross_entropy"),
                                HasSubstr("not needed")));
  EXPECT_TRUE(service_.submitted()[0].dry_run());
  const json answer = json::parse(Run({"submit", "--dry-run", file, "-o", "json"}).out);
  EXPECT_EQ(answer["plan"]["batch_size"], 100);
  EXPECT_EQ(answer["job_id"], "");
}

TEST_F(DistillctlSubmitTest, ARefusedJobFilePrintsAllProblemsWithTheirPlaces) {
  for (int i = 0; i < 300; ++i) {
    v1::JobFileProblem* problem = service_.submit_response.add_problems();
    problem->set_line(3 + i);
    problem->set_column(5);
    problem->set_text("unknown key 'wieght'; did you mean 'weight'?");
  }
  v1::JobFileProblem* last = service_.submit_response.add_problems();
  last->set_override_index(1);
  last->set_text("bad\x1b[31m");
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  const ChildResult result = Run({"submit", file, "--set", "seed=1", "--name", "x"});
  EXPECT_EQ(result.exit_code, kExitInvalidJob);
  EXPECT_THAT(result.err, StartsWith(file + ":3:5: unknown key 'wieght'; did you mean 'weight'?\n" + file + ":4:5: "));
  EXPECT_THAT(result.err, HasSubstr("\n" + file +
                                    ":302:5: unknown key 'wieght'; did you mean 'weight'?\n"
                                    "override 'name=x': bad\\x1b[31m\n"
                                    "error: " +
                                    file + " was refused (301 problems); nothing was submitted\n"));
  EXPECT_THAT(result.out, IsEmpty());
  const ChildResult as_json = Run({"submit", file, "-o", "json"});
  EXPECT_EQ(as_json.exit_code, kExitInvalidJob);
  EXPECT_EQ(json::parse(as_json.out)["problems"].size(), 301u);
}

TEST_F(DistillctlSubmitTest, RefusalsOtherThanSyntaxAreAboutTheJobToo) {
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  for (const auto code :
       {grpc::StatusCode::ALREADY_EXISTS, grpc::StatusCode::FAILED_PRECONDITION, grpc::StatusCode::NOT_FOUND}) {
    service_.Fail(grpc::Status(code, "no teacher serves 'x'"));
    const ChildResult result = Run({"submit", file});
    EXPECT_EQ(result.exit_code, kExitInvalidJob) << code;
    EXPECT_THAT(result.err, HasSubstr("no teacher serves 'x'"));
  }
}

TEST_F(DistillctlSubmitTest, BadFilesAreRefusedWithoutACall) {
  StartServer();
  ChildResult result = Run({"submit", folder_ + "/missing.yaml"});
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_THAT(result.err, AllOf(HasSubstr("missing.yaml"), HasSubstr("No such file")));
  result = Run({"submit", folder_});
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_THAT(result.err, HasSubstr("directory"));
  result = Run({"submit", Write("big.yaml", std::string((1 << 20) + 1, 'x'))});
  EXPECT_EQ(result.exit_code, kExitInvalidJob);
  EXPECT_THAT(result.err, HasSubstr("larger than 1 MiB"));
  result = Run({"submit", Write("latin1.yaml", "name: caf\xe9\n")});
  EXPECT_EQ(result.exit_code, kExitInvalidJob);
  EXPECT_THAT(result.err, HasSubstr("latin1.yaml:1:10: byte 0xe9 is not UTF-8"));
  EXPECT_THAT(service_.submitted(), IsEmpty());
}

}  // namespace
}  // namespace distill::cli
