// distillctl list, file, describe, fleet, taps, history, results, report and logs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "tests/coordinator/cli/distillctl_fixture.h"

namespace distill::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class DistillctlReadTest : public DistillctlFixture {};

TEST_F(DistillctlReadTest, ListShowsJobs) {
  service_.Put(RunningJob());
  StartServer();
  const ChildResult result = Run({"list", "--limit", "7"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("JOB  NAME"), HasSubstr("j-1  fashion  running"), Not(HasSubstr("\x1b"))));
  EXPECT_EQ(service_.list_request().limit(), 7u);
  EXPECT_EQ(service_.list_request().states_size(), 0);
  EXPECT_EQ(Run({"list", "-q"}).out, "j-1\n");
  const json answer = json::parse(Run({"--output", "json", "list"}).out);
  EXPECT_EQ(answer["jobs"][0]["state"], "JOB_STATE_RUNNING");
}

TEST_F(DistillctlReadTest, ListTakesStatesAndALimitTheCoordinatorKeeps) {
  StartServer();
  EXPECT_EQ(Run({"list", "--state", "running", "--state", "queued"}).exit_code, kExitOk);
  EXPECT_THAT(service_.list_request().states(), ElementsAre(v1::JOB_STATE_RUNNING, v1::JOB_STATE_QUEUED));
  EXPECT_EQ(Run({"list", "--limit", "1000"}).exit_code, kExitOk);
  const ChildResult more = Run({"list", "--limit", "1001"});
  EXPECT_EQ(more.exit_code, kExitUsage);
  EXPECT_THAT(more.err, HasSubstr("1000"));
  EXPECT_EQ(Run({"list", "--state", "training"}).exit_code, kExitUsage);
}

TEST_F(DistillctlReadTest, FilePrintsTheJobsFileWithItsOverrides) {
  service_.Put(RunningJob());
  service_.file.set_file_name("job.yaml");
  service_.file.set_yaml("name: fashion\nseed: 1");
  service_.file.add_overrides("seed=3");
  service_.file.add_overrides("a=\x1b[2J\nforged: 1");
  StartServer();
  EXPECT_EQ(Run({"file", "j-1"}).out, "# --set seed=3\n# --set a=\\x1b[2J\\nforged: 1\nname: fashion\nseed: 1\n");
  const json answer = json::parse(Run({"file", "fashion", "-o", "json"}).out);
  EXPECT_EQ(answer["yaml"], "name: fashion\nseed: 1");
  EXPECT_EQ(answer["overrides"][0], "seed=3");
  EXPECT_EQ(Run({"file", "none"}).exit_code, kExitNotFound);
}

TEST_F(DistillctlReadTest, ResultsTakesPatterns) {
  for (const auto& [id, name] : {std::pair{"j-2", "kd-seed2"}, {"j-1", "kd-seed1"}, {"j-3", "scratch"}}) {
    v1::Job job = SucceededJob();
    job.set_id(id);
    job.set_name(name);
    service_.Put(job);
  }
  StartServer();
  const auto jobs = [](const ChildResult& result) {
    std::vector<std::string> ids;
    const json answer = json::parse(result.out);
    for (const json& entry : answer["results"]) ids.push_back(entry["job"]);
    return ids;
  };
  // The list is newest first; results come in the order of submission, each job once.
  EXPECT_THAT(jobs(Run({"results", "kd-*", "-o", "json"})), ElementsAre("j-1", "j-2"));
  EXPECT_THAT(jobs(Run({"results", "scratch", "kd-seed?", "j-2", "-o", "json"})), ElementsAre("j-3", "j-1", "j-2"));
  const ChildResult none = Run({"results", "cwd-*"});
  EXPECT_EQ(none.exit_code, kExitNotFound);
  EXPECT_THAT(none.err, HasSubstr("none of the newest 1000 jobs has an id or name like 'cwd-*'"));
}

TEST_F(DistillctlReadTest, DescribeShowsTheJob) {
  service_.Put(SucceededJob());
  StartServer();
  const ChildResult result = Run({"describe", "fashion"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("State      succeeded"), HasSubstr("/work/j-1/student.pt"),
                                HasSubstr("Plan of fashion")));
  const json answer = json::parse(Run({"describe", "j-1", "-o", "json"}).out);
  EXPECT_EQ(answer["id"], "j-1");
  EXPECT_EQ(answer["restarts"], 0) << "defaults are printed";
  EXPECT_EQ(answer["artifacts"]["safetensors_bytes"], "319488") << "64-bit integers are strings in protobuf JSON";
}

TEST_F(DistillctlReadTest, ServerTextIsEscaped) {
  v1::Job job = RunningJob();
  job.set_name("a\x1b[2J\nb");
  job.set_reason("\x07");
  service_.Put(job);
  StartServer();
  for (const char* command : {"list", "describe j-1", "results j-1"}) {
    std::istringstream words(command);
    std::vector<std::string> args;
    for (std::string word; words >> word;) args.push_back(word);
    const ChildResult result = Run(args);
    EXPECT_EQ(result.exit_code, kExitOk) << result.err;
    EXPECT_THAT(result.out, AllOf(HasSubstr("a\\x1b[2J\\nb"), Not(HasSubstr("\x1b")), Not(HasSubstr("\x07"))))
        << command;
  }
}

TEST_F(DistillctlReadTest, FleetShowsWorkers) {
  v1::WorkerInfo* worker = service_.fleet.add_workers();
  worker->set_id("teacher-0");
  worker->set_kind("teacher");
  worker->set_state("idle");
  StartServer();
  const ChildResult result = Run({"fleet"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("teacher-0"));
  EXPECT_EQ(json::parse(Run({"fleet", "-o", "json"}).out)["workers"][0]["id"], "teacher-0");
}

TEST_F(DistillctlReadTest, TapsSendsTheSizes) {
  v1::TapInfo* tap = service_.taps.add_taps();
  tap->set_path("layer1");
  tap->add_shape(8);
  StartServer();
  const ChildResult result =
      Run({"taps", "cifar_resnet8", "--width", "8", "--classes", "10", "--channels", "1", "--image", "28x32"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("layer1"));
  const v1::ListTapsRequest request = service_.taps_request();
  EXPECT_EQ(request.width(), 8u);
  EXPECT_EQ(request.num_classes(), 10u);
  EXPECT_EQ(request.in_channels(), 1u);
  EXPECT_EQ(request.image_height(), 28u);
  EXPECT_EQ(request.image_width(), 32u);
  EXPECT_EQ(json::parse(Run({"taps", "cifar_resnet8", "-o", "json"}).out)["taps"][0]["path"], "layer1");
  const ChildResult unknown = Run({"taps", "cifar_resnet9"});
  EXPECT_EQ(unknown.exit_code, kExitNotFound);
  EXPECT_THAT(unknown.err, HasSubstr("did you mean 'cifar_resnet8'?"));
}

TEST_F(DistillctlReadTest, ModelShowsWhatANetworkCosts) {
  v1::ModelSpec* const spec = service_.taps.mutable_spec();
  spec->set_arch("cifar_resnet8");
  spec->set_width(8);
  spec->set_num_classes(10);
  spec->set_in_channels(3);
  spec->set_image_height(28);
  spec->set_image_width(32);
  StartServer();
  const ChildResult result = Run({"model", "cifar_resnet8", "--width", "8", "--image", "28x32"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("(output)"));
  EXPECT_EQ(service_.taps_request().width(), 8u);
  EXPECT_EQ(service_.taps_request().image_width(), 32u);
  EXPECT_EQ(json::parse(Run({"model", "cifar_resnet8", "-o", "json"}).out)["width"], 8);
  EXPECT_EQ(Run({"model", "cifar_resnet9"}).exit_code, kExitNotFound);
  EXPECT_EQ(Run({"model", "cifar_resnet8", "--image", "28"}).exit_code, kExitUsage);
}

TEST_F(DistillctlReadTest, ModelOfAnArchiveSaysWhereToLook) {
  service_.taps.mutable_spec()->set_arch("torchscript");
  StartServer();
  const ChildResult result = Run({"model", "cifar_resnet8"});
  EXPECT_NE(result.exit_code, kExitOk);
  EXPECT_THAT(result.err, HasSubstr("is a TorchScript archive"));
}

TEST_F(DistillctlReadTest, HistoryAsTableCsvAndJson) {
  service_.Put(RunningJob());
  for (int i = 0; i < 3; ++i) *service_.history.add_points() = RunningJob().progress();
  StartServer();
  EXPECT_THAT(Run({"history", "j-1"}).out, HasSubstr("whole   420    720  0.5432"));
  const std::string csv = Run({"history", "j-1", "--csv", "--limit", "1"}).out;
  EXPECT_THAT(csv, AllOf(StartsWith("stage,stage_name,step,"), HasSubstr("\n1,whole,420,720,0.5432,")));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 2);
  EXPECT_EQ(json::parse(Run({"history", "j-1", "-o", "json"}).out)["points"].size(), 3u);
  EXPECT_EQ(json::parse(Run({"history", "j-1", "-o", "json", "--limit", "2"}).out)["points"].size(), 2u);
}

TEST_F(DistillctlReadTest, ResultsComparesJobs) {
  v1::Job other = SucceededJob();
  other.set_id("j-2");
  other.set_name("alone");
  service_.Put(SucceededJob());
  service_.Put(other);
  StartServer();
  const ChildResult result = Run({"results", "alone", "fashion"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("teacher fashion-teacher"), HasSubstr("91.52%"), HasSubstr("Files of alone (j-2)")));
  const json answer = json::parse(Run({"results", "j-2", "j-1", "-o", "json"}).out);
  EXPECT_EQ(answer["results"][0]["name"], "alone");
  EXPECT_EQ(answer["results"][1]["student_parameters"], 77360);
}

TEST_F(DistillctlReadTest, ReportWritesAFile) {
  service_.Put(SucceededJob());
  service_.PutEvent(1, "an <event>");
  StartServer();
  const std::string file = folder_ + "/report.html";
  ChildResult result = Run({"report", "j-1", "-o", file});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("wrote " + file + " ("), HasSubstr("KiB")));
  const auto read = [&] {
    std::ostringstream text;
    text << std::ifstream(file).rdbuf();
    return text.str();
  };
  const std::string html = read();
  EXPECT_THAT(html, AllOf(StartsWith("<!doctype html>"), HasSubstr("an &lt;event&gt;"), HasSubstr("</html>")));

  result = Run({"report", "j-1", "-o", file});
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_THAT(result.err, AllOf(HasSubstr(file), HasSubstr("--force")));
  service_.PutEvent(2, "another");
  EXPECT_EQ(Run({"report", "j-1", "--out", file, "--force", "-q"}).out, file + "\n");
  EXPECT_THAT(read(), HasSubstr("another"));
  const json answer = json::parse(Run({"report", "j-1", "-o", file, "--force", "--output", "json"}).out);
  EXPECT_EQ(answer["file"], file);
  EXPECT_EQ(answer["bytes"], read().size());

  result = Run({"report", "fashion", "-o", "-"});
  EXPECT_EQ(result.exit_code, kExitOk);
  EXPECT_THAT(result.out, AllOf(StartsWith("<!doctype html>"), HasSubstr("</html>")));
  EXPECT_THAT(result.err, IsEmpty());
}

TEST_F(DistillctlReadTest, ReportFailuresHaveTheirExitCodes) {
  v1::Job failed = RunningJob();
  failed.set_state(v1::JOB_STATE_FAILED);
  failed.set_reason("the data folder is missing");
  service_.Put(failed);
  StartServer();
  const ChildResult result = Run({"report", "j-1", "-o", "-"});
  EXPECT_EQ(result.exit_code, kExitOk) << "a report on a failed job is a report: " << result.err;
  EXPECT_THAT(result.out, HasSubstr("the data folder is missing"));
  const ChildResult unknown = Run({"report", "none", "-o", folder_ + "/none.html"});
  EXPECT_EQ(unknown.exit_code, kExitNotFound);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/none.html"));
  EXPECT_EQ(Run({"report", "j-1", "-o", folder_ + "/no/such/folder.html"}).exit_code, kExitInternal);
  EXPECT_EQ(Run({"report"}).exit_code, kExitUsage);
  EXPECT_EQ(Run({"report", "j-1", "-o", "/dev/full"}).exit_code, kExitInternal);
}

TEST_F(DistillctlReadTest, LogsPrintsEvents) {
  service_.Put(RunningJob());
  service_.PutEvent(1, "job queued");
  service_.PutEvent(2, "job started");
  StartServer();
  EXPECT_EQ(Run({"logs", "j-1"}).out,
            "2027-01-15 08:00:00  INFO     coordinator   job queued\n"
            "2027-01-15 08:00:00  INFO     coordinator   job started\n");
  EXPECT_THAT(Run({"logs", "j-1", "--after", "1"}).out, AllOf(HasSubstr("job started"), Not(HasSubstr("job queued"))));
  const json answer = json::parse(Run({"logs", "j-1", "-o", "json"}).out);
  ASSERT_EQ(answer["events"].size(), 2u);
  EXPECT_EQ(answer["events"][1]["text"], "job started");
  EXPECT_THAT(json::parse(Run({"logs", "j-1", "--after", "9", "-o", "json"}).out)["events"], IsEmpty());
}

TEST_F(DistillctlReadTest, LogsFollowsOverARestartWithoutRepeating) {
  service_.Put(RunningJob());
  service_.PutEvent(1, "first");
  StartServer();
  auto child = Start({"logs", "-f", "j-1", "--timeout", "60s"});
  ASSERT_TRUE(child->WaitForOutput("first"));
  StopServer();
  ASSERT_TRUE(child->WaitForError("lost the coordinator"));
  service_.PutEvent(2, "second");
  StartServer();
  ASSERT_TRUE(child->WaitForOutput("second"));
  service_.PutEvent(3, "third");
  ASSERT_TRUE(child->WaitForOutput("third"));
  service_.Put(SucceededJob());
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 3) << result.out;
  EXPECT_THAT(result.err, HasSubstr("connected to the coordinator again"));
}

TEST_F(DistillctlReadTest, LogsFollowAsJsonIsOneObjectALine) {
  service_.Put(SucceededJob());
  service_.PutEvent(1, "first");
  service_.PutEvent(2, "second");
  StartServer();
  std::istringstream lines(Run({"logs", "-f", "j-1", "-o", "json"}).out);
  std::string line;
  for (const char* text : {"first", "second"}) {
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(json::parse(line)["text"], text);
  }
  EXPECT_FALSE(std::getline(lines, line));
}

}  // namespace
}  // namespace distill::cli
