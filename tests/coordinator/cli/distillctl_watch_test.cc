// distillctl watch, cancel, resume and uncordon, on a terminal and elsewhere.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "tests/coordinator/cli/distillctl_fixture.h"

namespace distill::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class DistillctlWatchTest : public DistillctlFixture {};

TEST_F(DistillctlWatchTest, WatchPrintsPlainLinesUntilTheEnd) {
  service_.Put(QueuedJob());
  StartServer();
  auto child = Start({"watch", "fashion"});
  ASSERT_TRUE(child->WaitForOutput("queued: waiting for 2 students; 1 is idle"));
  service_.Put(RunningJob());
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole: goes on"));
  service_.Put(SucceededJob());
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("stage 3/3 head done in 1m00s"), HasSubstr("job j-1 (fashion) succeeded after 3m10s"),
                    HasSubstr("/work/j-1/student.safetensors"), Not(HasSubstr("\x1b"))));
  EXPECT_EQ(result.err, "");
}

TEST_F(DistillctlWatchTest, TheEndOfTheWatchedJobIsTheExitCode) {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_FAILED);
  job.set_reason("data folder 'x' is missing");
  service_.Put(job);
  StartServer();
  ChildResult result = Run({"watch", "j-1"});
  EXPECT_EQ(result.exit_code, kExitJobFailed);
  EXPECT_THAT(result.out, HasSubstr("failed: data folder 'x' is missing"));
  job.set_state(v1::JOB_STATE_CANCELLED);
  service_.Put(job);
  EXPECT_EQ(Run({"watch", "j-1"}).exit_code, kExitJobCancelled);
  EXPECT_EQ(Run({"submit", "--watch", Write("job.yaml", "name: fashion\n")}).exit_code, kExitJobCancelled);
  result = Run({"watch", "-q", "j-1"});
  EXPECT_EQ(result.exit_code, kExitJobCancelled);
  EXPECT_EQ(result.out + result.err, "");
}

TEST_F(DistillctlWatchTest, SubmitWatchFollowsTheJob) {
  service_.Put(QueuedJob());
  StartServer();
  auto child = Start({"submit", "--watch", Write("job.yaml", "name: fashion\n")});
  ASSERT_TRUE(child->WaitForOutput("submitted job j-1 (fashion)"));
  ASSERT_TRUE(service_.WaitForStreams(1));
  service_.Put(SucceededJob());
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("succeeded after 3m10s"));
}

TEST_F(DistillctlWatchTest, WatchAsJsonPrintsTheEndedJobAlone) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "-o", "json"});
  ASSERT_TRUE(child->WaitForError("stage 2/3 whole"));
  service_.Put(SucceededJob());
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(json::parse(result.out)["state"], "JOB_STATE_SUCCEEDED");
  // submit --watch gives one document as well.
  EXPECT_EQ(json::parse(Run({"submit", "--watch", "-o", "json", Write("job.yaml", "name: fashion\n")}).out)["id"],
            "j-1");
}

TEST_F(DistillctlWatchTest, WatchOutlivesARestartOfTheCoordinator) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "--timeout", "60s"});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole"));
  StopServer();
  ASSERT_TRUE(child->WaitForError("lost the coordinator at " + address_ + "; the job goes on"));
  StartServer();
  ASSERT_TRUE(child->WaitForError("connected to the coordinator again"));
  service_.Put(SucceededJob());
  EXPECT_EQ(child->Wait().exit_code, kExitOk);
}

TEST_F(DistillctlWatchTest, WatchReconnectsWhenAStoppingCoordinatorEndsTheStream) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "--timeout", "60s"});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole"));
  service_.EndStreams();
  ASSERT_TRUE(child->WaitForError("lost the coordinator"));
  service_.AllowStreams();
  ASSERT_TRUE(child->WaitForError("connected to the coordinator again"));
  service_.Put(SucceededJob());
  EXPECT_EQ(child->Wait().exit_code, kExitOk);
}

TEST_F(DistillctlWatchTest, WatchGivesUpAfterTheTimeout) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "--timeout", "1s"});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole"));
  StopServer();
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitUnreachable);
  EXPECT_THAT(result.err, AllOf(HasSubstr("cannot reach the coordinator at " + address_), HasSubstr("watch j-1")));
}

TEST_F(DistillctlWatchTest, InterruptLeavesTheJobRunning) {
  service_.Put(RunningJob());
  StartServer();
  int streams = 0;
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{"watch", "j-1"}, {"logs", "-f", "j-1"}}) {
    SCOPED_TRACE(args[0]);
    auto child = Start(args);
    ASSERT_TRUE(service_.WaitForStreams(++streams));
    child->Signal(SIGINT);
    const ChildResult result = child->Wait();
    EXPECT_EQ(result.exit_code, kExitInterrupted);
    EXPECT_THAT(result.err,
                AllOf(HasSubstr("job j-1 goes on"), HasSubstr("distillctl --coordinator " + address_ + " watch j-1"),
                      HasSubstr("distillctl --coordinator " + address_ + " cancel j-1")));
  }
  EXPECT_THAT(service_.cancelled(), IsEmpty());
}

TEST_F(DistillctlWatchTest, InterruptWhileReconnectingEndsAtOnce) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "--timeout", "1h"});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole"));
  StopServer();
  ASSERT_TRUE(child->WaitForError("lost the coordinator"));
  child->Signal(SIGINT);
  EXPECT_EQ(child->Wait().exit_code, kExitInterrupted);
}

TEST_F(DistillctlWatchTest, CancelAsksAndMayWait) {
  service_.Put(RunningJob());
  StartServer();
  ChildResult result = Run({"cancel", "j-1", "--reason", "wrong data"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "job j-1 (fashion) is asked to stop\n");
  ASSERT_EQ(service_.cancelled().size(), 1u);
  EXPECT_EQ(service_.cancelled()[0].reason(), "wrong data");

  auto child = Start({"cancel", "j-1", "--wait"});
  ASSERT_TRUE(child->WaitForError("waiting until job j-1 has stopped"));
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_CANCELLED);
  job.set_reason("wrong data");
  service_.Put(job);
  result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("job j-1 (fashion) cancelled: wrong data"));
  EXPECT_EQ(json::parse(Run({"cancel", "j-1", "--wait", "-o", "json"}).out)["state"], "JOB_STATE_CANCELLED");
}

TEST_F(DistillctlWatchTest, ResumeQueuesAnEndedJobAgain) {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_CANCELLED);
  job.set_generation(3);
  service_.Put(job);
  StartServer();
  ChildResult result = Run({"resume", "j-1"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "job j-1 (fashion) is queued as generation 4\n");
  EXPECT_THAT(result.err, HasSubstr("distillctl watch j-1"));
  EXPECT_EQ(Run({"resume", "j-1", "-q"}).out, "j-1\n");
  EXPECT_EQ(json::parse(Run({"resume", "j-1", "-o", "json"}).out)["generation"], "4");
  EXPECT_EQ(Run({"resume", "nobody"}).exit_code, kExitNotFound);
  job.set_state(v1::JOB_STATE_SUCCEEDED);
  service_.Put(job);
  result = Run({"resume", "j-1"});
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_THAT(result.err, HasSubstr("nothing left to do"));
  EXPECT_EQ(Run({"resume", "j-1", "--watch"}).exit_code, kExitUsage);
}

TEST_F(DistillctlWatchTest, UncordonNamesTheWorker) {
  StartServer();
  EXPECT_EQ(Run({"uncordon", "s0"}).out, "worker s0 takes jobs again\n");
  const ChildResult result = Run({"uncordon", "nobody"});
  EXPECT_EQ(result.exit_code, kExitNotFound);
  EXPECT_THAT(result.err, HasSubstr("no worker has the id 'nobody'"));
  EXPECT_EQ(Run({"uncordon"}).exit_code, kExitUsage);
}

TEST_F(DistillctlWatchTest, InterruptedCancelStillCancels) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"cancel", "j-1", "--wait"});
  ASSERT_TRUE(service_.WaitForStreams(1));
  child->Signal(SIGINT);
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitInterrupted);
  EXPECT_THAT(result.err, HasSubstr("asked to stop all the same"));
}

TEST_F(DistillctlWatchTest, OnATerminalTheDisplayIsRedrawnInPlace) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1"}, {.terminal = true, .columns = 100});
  ASSERT_TRUE(child->WaitForOutput("━"));
  ASSERT_TRUE(child->WaitForOutput("\r\x1b[7A")) << "seven lines are drawn again over themselves";
  ASSERT_TRUE(child->WaitForOutput("\x1b[36mrunning\x1b[0m"));
  StopServer();
  ASSERT_TRUE(child->WaitForOutput("lost the coordinator"));
  StartServer();
  service_.Put(SucceededJob());
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk);
  EXPECT_THAT(result.out, AllOf(HasSubstr("✓"), HasSubstr("\x1b[32msucceeded\x1b[0m after 3m10s")));
}

TEST_F(DistillctlWatchTest, TheDisplayFollowsTheTerminalsWidth) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1"}, {.terminal = true, .columns = 120});
  ASSERT_TRUE(child->WaitForOutput("(teacher top-1 93.75%)"));
  child->Resize(30, 24);
  ASSERT_TRUE(child->WaitForOutput("  2100 img/s  lr 0.05  top-1 …")) << child->output();
  child->Signal(SIGINT);
  EXPECT_EQ(child->Wait().exit_code, kExitInterrupted);
}

TEST_F(DistillctlWatchTest, NoColorAndLocaleAreObeyed) {
  service_.Put(SucceededJob());
  StartServer();
  EXPECT_THAT(Run({"list"}, {.terminal = true}).out, HasSubstr("\x1b[32m"));
  EXPECT_THAT(Run({"list", "--color", "never"}, {.terminal = true}).out, Not(HasSubstr("\x1b[")));
  EXPECT_THAT(Run({"list", "--color", "always"}).out, HasSubstr("\x1b[32m"));
  env_["NO_COLOR"] = "1";
  EXPECT_THAT(Run({"list"}, {.terminal = true}).out, Not(HasSubstr("\x1b[")));
  env_["LC_ALL"] = "C";
  service_.Put(RunningJob());
  auto child = Start({"watch", "j-1"}, {.terminal = true});
  ASSERT_TRUE(child->WaitForOutput("####"));
  child->Signal(SIGINT);
  const std::string out = child->Wait().out;
  EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) << out;
  EXPECT_THAT(out, Not(HasSubstr("\x1b[36m")));
  env_["TERM"] = "dumb";
  child = Start({"watch", "j-1"}, {.terminal = true});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole: goes on"));
  EXPECT_THAT(child->output(), Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace distill::cli
