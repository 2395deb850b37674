// The real program distillctl against a JobService with canned data, over real gRPC.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "common/exit_codes.h"
#include "common/str_cat.h"
#include "tests/coordinator/cli/canned_job_service.h"
#include "tests/coordinator/cli/child.h"
#include "tests/coordinator/cli/sample_jobs.h"

namespace distill::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class DistillctlTest : public ::testing::Test {
 protected:
  DistillctlTest() {
    std::string folder = ::testing::TempDir() + "distillctl_XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    *service_.submit_response.mutable_plan() = SamplePlan();
    service_.submit_response.set_job_id("j-1");
    env_ = {{"PATH", "/usr/bin:/bin"}, {"HOME", folder_}, {"TZ", "UTC"}, {"LC_ALL", "C.UTF-8"}, {"TERM", "xterm"}};
  }
  ~DistillctlTest() override {
    StopServer();
    std::filesystem::remove_all(folder_);
  }

  void StartServer(RpcServer::Options options = {}) {
    if (!address_.empty()) options.listen = address_;
    auto server = RpcServer::Start(options, {&service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    address_ = server_->address();
    env_["DISTILL_COORDINATOR"] = address_;
  }
  void StopServer() {
    service_.EndStreams();
    if (server_ != nullptr) server_->Stop(std::chrono::seconds(5));
    server_.reset();
    service_.AllowStreams();
  }

  std::unique_ptr<Child> Start(std::vector<std::string> args, Child::Options options = {}) {
    args.insert(args.begin(), DISTILLCTL);
    options.env = env_;
    return std::make_unique<Child>(args, options);
  }
  ChildResult Run(std::vector<std::string> args, Child::Options options = {}) {
    return Start(std::move(args), std::move(options))->Wait();
  }
  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  // A port where nothing listens: of a server that has just stopped.
  void UseDeadAddress() {
    StartServer();
    StopServer();
  }

  std::string folder_, address_;
  std::map<std::string, std::string> env_;
  CannedJobService service_;
  std::unique_ptr<RpcServer> server_;
};

// --- submit
// -----------------------------------------------------------------------------------------------------------------

TEST_F(DistillctlTest, SubmitSendsFileOverridesAndRequestId) {
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

TEST_F(DistillctlTest, SubmitMakesARandomRequestIdEachTime) {
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

TEST_F(DistillctlTest, SubmitQuietPrintsTheIdAndJsonTheAnswer) {
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

TEST_F(DistillctlTest, SubmitReadsStandardInput) {
  StartServer();
  EXPECT_EQ(Run({"submit", "-"}, {.input = "name: piped\n"}).exit_code, kExitOk);
  ASSERT_EQ(service_.submitted().size(), 1u);
  EXPECT_EQ(service_.submitted()[0].yaml(), "name: piped\n");
  EXPECT_EQ(service_.submitted()[0].file_name(), "<stdin>");
}

TEST_F(DistillctlTest, SubmitRetriesWithTheSameRequestId) {
  service_.Fail(grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting"), 3);
  StartServer();
  const ChildResult result = Run({"submit", "--timeout", "60s", Write("job.yaml", "name: fashion\n")});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_THAT(result.err, HasSubstr("is not ready (starting); try again; trying again"));
  const auto requests = service_.submitted();
  ASSERT_EQ(requests.size(), 4u);
  for (const auto& request : requests) EXPECT_EQ(request.request_id(), requests[0].request_id());
}

TEST_F(DistillctlTest, SubmitWaitsForACoordinatorThatIsStarting) {
  UseDeadAddress();
  auto child = Start({"submit", "--timeout", "60s", Write("job.yaml", "name: fashion\n")});
  ASSERT_TRUE(child->WaitForError("trying again"));
  StartServer();
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(service_.submitted().size(), 1u);
}

TEST_F(DistillctlTest, DryRunPrintsThePlan) {
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

TEST_F(DistillctlTest, ARefusedJobFilePrintsAllProblemsWithTheirPlaces) {
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

TEST_F(DistillctlTest, RefusalsOtherThanSyntaxAreAboutTheJobToo) {
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

TEST_F(DistillctlTest, BadFilesAreRefusedWithoutACall) {
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

// --- reading
// ------------------------------------------------------------------------------------------------------------------

TEST_F(DistillctlTest, ListShowsJobs) {
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

TEST_F(DistillctlTest, ListTakesStatesAndALimitTheCoordinatorKeeps) {
  StartServer();
  EXPECT_EQ(Run({"list", "--state", "running", "--state", "queued"}).exit_code, kExitOk);
  EXPECT_THAT(service_.list_request().states(), ElementsAre(v1::JOB_STATE_RUNNING, v1::JOB_STATE_QUEUED));
  EXPECT_EQ(Run({"list", "--limit", "1000"}).exit_code, kExitOk);
  const ChildResult more = Run({"list", "--limit", "1001"});
  EXPECT_EQ(more.exit_code, kExitUsage);
  EXPECT_THAT(more.err, HasSubstr("1000"));
  EXPECT_EQ(Run({"list", "--state", "training"}).exit_code, kExitUsage);
}

TEST_F(DistillctlTest, FilePrintsTheJobsFileWithItsOverrides) {
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

TEST_F(DistillctlTest, ResultsTakesPatterns) {
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

TEST_F(DistillctlTest, DescribeShowsTheJob) {
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

TEST_F(DistillctlTest, ServerTextIsEscaped) {
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

TEST_F(DistillctlTest, FleetShowsWorkers) {
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

TEST_F(DistillctlTest, TapsSendsTheSizes) {
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

TEST_F(DistillctlTest, HistoryAsTableCsvAndJson) {
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

TEST_F(DistillctlTest, ResultsComparesJobs) {
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

TEST_F(DistillctlTest, ReportWritesAFile) {
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

TEST_F(DistillctlTest, ReportFailuresHaveTheirExitCodes) {
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

TEST_F(DistillctlTest, LogsPrintsEvents) {
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

TEST_F(DistillctlTest, LogsFollowsOverARestartWithoutRepeating) {
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

TEST_F(DistillctlTest, LogsFollowAsJsonIsOneObjectALine) {
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

// --- watch and cancel
// -----------------------------------------------------------------------------------------------------------

TEST_F(DistillctlTest, WatchPrintsPlainLinesUntilTheEnd) {
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

TEST_F(DistillctlTest, TheEndOfTheWatchedJobIsTheExitCode) {
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

TEST_F(DistillctlTest, SubmitWatchFollowsTheJob) {
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

TEST_F(DistillctlTest, WatchAsJsonPrintsTheEndedJobAlone) {
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

TEST_F(DistillctlTest, WatchOutlivesARestartOfTheCoordinator) {
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

TEST_F(DistillctlTest, WatchReconnectsWhenAStoppingCoordinatorEndsTheStream) {
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

TEST_F(DistillctlTest, WatchGivesUpAfterTheTimeout) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "--timeout", "1s"});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole"));
  StopServer();
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitUnreachable);
  EXPECT_THAT(result.err, AllOf(HasSubstr("cannot reach the coordinator at " + address_), HasSubstr("watch j-1")));
}

TEST_F(DistillctlTest, InterruptLeavesTheJobRunning) {
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

TEST_F(DistillctlTest, InterruptWhileReconnectingEndsAtOnce) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1", "--timeout", "1h"});
  ASSERT_TRUE(child->WaitForOutput("stage 2/3 whole"));
  StopServer();
  ASSERT_TRUE(child->WaitForError("lost the coordinator"));
  child->Signal(SIGINT);
  EXPECT_EQ(child->Wait().exit_code, kExitInterrupted);
}

TEST_F(DistillctlTest, CancelAsksAndMayWait) {
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

TEST_F(DistillctlTest, ResumeQueuesAnEndedJobAgain) {
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

TEST_F(DistillctlTest, UncordonNamesTheWorker) {
  StartServer();
  EXPECT_EQ(Run({"uncordon", "s0"}).out, "worker s0 takes jobs again\n");
  const ChildResult result = Run({"uncordon", "nobody"});
  EXPECT_EQ(result.exit_code, kExitNotFound);
  EXPECT_THAT(result.err, HasSubstr("no worker has the id 'nobody'"));
  EXPECT_EQ(Run({"uncordon"}).exit_code, kExitUsage);
}

TEST_F(DistillctlTest, InterruptedCancelStillCancels) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"cancel", "j-1", "--wait"});
  ASSERT_TRUE(service_.WaitForStreams(1));
  child->Signal(SIGINT);
  const ChildResult result = child->Wait();
  EXPECT_EQ(result.exit_code, kExitInterrupted);
  EXPECT_THAT(result.err, HasSubstr("asked to stop all the same"));
}

// --- on a terminal
// --------------------------------------------------------------------------------------------------------------

TEST_F(DistillctlTest, OnATerminalTheDisplayIsRedrawnInPlace) {
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

TEST_F(DistillctlTest, TheDisplayFollowsTheTerminalsWidth) {
  service_.Put(RunningJob());
  StartServer();
  auto child = Start({"watch", "j-1"}, {.terminal = true, .columns = 120});
  ASSERT_TRUE(child->WaitForOutput("(teacher 93.75%)"));
  child->Resize(30, 24);
  ASSERT_TRUE(child->WaitForOutput("  2100 img/s  lr 0.05  accura…")) << child->output();
  child->Signal(SIGINT);
  EXPECT_EQ(child->Wait().exit_code, kExitInterrupted);
}

TEST_F(DistillctlTest, NoColorAndLocaleAreObeyed) {
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

// --- errors, settings
// ------------------------------------------------------------------------------------------------------------

TEST_F(DistillctlTest, UnknownJobs) {
  StartServer();
  for (const char* command : {"describe", "watch", "logs", "cancel", "history", "results"}) {
    const ChildResult result = Run({command, "nope"});
    EXPECT_EQ(result.exit_code, kExitNotFound) << command;
    EXPECT_EQ(result.err, "error: no job 'nope'\n") << command;
    EXPECT_THAT(result.out, IsEmpty()) << command;
  }
}

TEST_F(DistillctlTest, UnreachableCoordinator) {
  UseDeadAddress();
  const std::string file = Write("job.yaml", "name: fashion\n");
  for (std::vector<std::string> args : std::vector<std::vector<std::string>>{{"list"},
                                                                             {"describe", "x"},
                                                                             {"watch", "x"},
                                                                             {"logs", "x"},
                                                                             {"cancel", "x"},
                                                                             {"fleet"},
                                                                             {"taps", "x"},
                                                                             {"history", "x"},
                                                                             {"results", "x"},
                                                                             {"submit", file}}) {
    args.insert(args.begin(), {"--timeout", "1s"});
    const ChildResult result = Run(args);
    EXPECT_EQ(result.exit_code, kExitUnreachable) << args[2];
    EXPECT_THAT(result.err,
                AllOf(HasSubstr("cannot reach the coordinator at " + address_ + " ("),
                      HasSubstr("is distill-coordinator running? use --coordinator or DISTILL_COORDINATOR")))
        << args[2];
  }
}

TEST_F(DistillctlTest, CoordinatorThatDoesNotAnswer) {
  // A socket that listens but never speaks.
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 8), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const ChildResult result =
      Run({"--coordinator", StrCat("127.0.0.1:", ntohs(address.sin_port)), "--timeout", "500ms", "list"});
  EXPECT_EQ(result.exit_code, kExitUnreachable);
  EXPECT_THAT(result.err, HasSubstr("coordinator at 127.0.0.1:"));
  close(fd);
}

TEST_F(DistillctlTest, WrongTokenIsUnauthenticated) {
  service_.Put(RunningJob());
  RpcServer::Options options;
  options.security.token_file = Write("token", "secret-of-the-server\n");
  StartServer(options);
  for (const char* command : {"list", "fleet"}) {
    const ChildResult result = Run({command});
    EXPECT_EQ(result.exit_code, kExitUnauthenticated) << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("refuses the credentials"), HasSubstr("--token-file")));
  }
  EXPECT_EQ(Run({"watch", "j-1", "--token-file", Write("other", "something-else\n")}).exit_code, kExitUnauthenticated);
  EXPECT_EQ(Run({"list", "--token-file", options.security.token_file}).exit_code, kExitOk);
  env_["DISTILL_TOKEN_FILE"] = options.security.token_file;
  EXPECT_EQ(Run({"list"}).exit_code, kExitOk);
}

TEST_F(DistillctlTest, WrongCommandLines) {
  StartServer();
  const auto expect = [&](std::vector<std::string> args, const std::string& message) {
    const ChildResult result = Run(args);
    EXPECT_EQ(result.exit_code, kExitUsage) << ::testing::PrintToString(args);
    EXPECT_THAT(result.err, HasSubstr(message)) << ::testing::PrintToString(args);
    EXPECT_THAT(result.out, IsEmpty());
  };
  expect({}, "subcommand is required");
  expect({"lsit"}, "no command is called 'lsit'; did you mean 'list'?");
  expect({"list", "--nope"}, "--nope");
  expect({"describe"}, "JOB");
  expect({"describe", "a", "b"}, "b");
  expect({"list", "--timeout", "soon"}, "'soon' is not a duration");
  expect({"list", "--output", "xml"}, "xml");
  expect({"list", "--limit", "-1"}, "-1");
  expect({"taps", "x", "--image", "28"}, "'28' is not HxW");
  expect({"submit", "f", "--set", "novalue"}, "'novalue' is not KEY=VALUE");
  expect({"submit", "f", "--request-id", std::string(129, 'x')}, "1 to 128 bytes");
  expect({"--coordinator", "nonsense", "list"}, "nonsense");
  expect({"--coordinator", "192.0.2.1:7070", "list"}, "--insecure");
  expect({"--token-file", folder_ + "/missing", "list"}, folder_ + "/missing");
  expect({"completion", "zsh"}, "zsh");
}

TEST_F(DistillctlTest, AJobMayBeCalledLikeACommand) {
  v1::Job job = RunningJob();
  job.set_name("list");
  service_.Put(job);
  StartServer();
  EXPECT_THAT(Run({"describe", "list"}).out, HasSubstr("j-1 (list)"));
  EXPECT_THAT(Run({"results", "list", "list"}).out, HasSubstr("list (j-1)"));
}

TEST_F(DistillctlTest, ConfigFileIsBelowEnvironmentAndFlags) {
  service_.Put(RunningJob());
  StartServer();
  const auto jobs = [](const ChildResult& result) { return result.out.find("\"jobs\"") != std::string::npos; };
  std::filesystem::create_directories(folder_ + "/.config/distill");
  Write(".config/distill/config.toml", "coordinator = \"" + address_ + "\"\noutput = \"json\"\n");
  env_.erase("DISTILL_COORDINATOR");
  const ChildResult file = Run({"list"});
  EXPECT_EQ(file.exit_code, kExitOk) << file.err;
  EXPECT_TRUE(jobs(file)) << file.out;
  EXPECT_FALSE(jobs(Run({"list", "--output", "table"})));
  Write("other.toml", "coordinator = \"127.0.0.1:1\"\n");
  EXPECT_EQ(Run({"list", "--config", folder_ + "/other.toml"}).exit_code, kExitUnreachable);
  env_["DISTILL_COORDINATOR"] = address_;
  EXPECT_EQ(Run({"list", "--config", folder_ + "/other.toml"}).exit_code, kExitOk);
  Write("typo.toml", "cordinator = \"127.0.0.1:1\"\n");
  const ChildResult typo = Run({"list", "--config", folder_ + "/typo.toml"});
  EXPECT_EQ(typo.exit_code, kExitUsage);
  EXPECT_THAT(typo.err, HasSubstr("cordinator"));
}

// Whatever is asked for: exit code 1 and the cause, not that of some call since.
TEST_F(DistillctlTest, OutputThatDoesNotArriveIsAnErrorWithItsCause) {
  service_.Put(SucceededJob());
  service_.PutEvent(1, "submitted");
  v1::TapInfo* tap = service_.taps.add_taps();
  tap->set_path("layer1");
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{{"submit", file},
                                                                                       {"submit", file, "--dry-run"},
                                                                                       {"submit", file, "-q"},
                                                                                       {"submit", file, "--watch"},
                                                                                       {"list"},
                                                                                       {"list", "-q"},
                                                                                       {"describe", "j-1"},
                                                                                       {"watch", "j-1"},
                                                                                       {"logs", "j-1"},
                                                                                       {"logs", "-f", "j-1"},
                                                                                       {"cancel", "j-1"},
                                                                                       {"file", "j-1"},
                                                                                       {"fleet"},
                                                                                       {"taps", "cifar_resnet8"},
                                                                                       {"history", "j-1"},
                                                                                       {"history", "--csv", "j-1"},
                                                                                       {"results", "j-1"},
                                                                                       {"report", "-o", "-", "j-1"},
                                                                                       {"completion", "bash"},
                                                                                       {"--help"},
                                                                                       {"--help-all"},
                                                                                       {"--version"},
                                                                                       {"watch", "--help"}}) {
    for (const char* output : {"table", "json"}) {
      std::vector<std::string> words = {"-o", output};
      words.insert(words.end(), command.begin(), command.end());
      const ChildResult result = Run(words, {.stdout_file = "/dev/full"});
      EXPECT_EQ(result.exit_code, kExitInternal) << command[0] << " " << output << ": " << result.err;
      EXPECT_THAT(result.err, HasSubstr("error: cannot write to standard output: No space left on device\n"))
          << command[0] << " " << output;
    }
  }
}

// --- help, completion, documentation
// ----------------------------------------------------------------------------------------------

TEST_F(DistillctlTest, HelpNamesTheExitCodes) {
  const ChildResult result = Run({"--help"});
  EXPECT_EQ(result.exit_code, kExitOk);
  EXPECT_THAT(result.out, AllOf(HasSubstr("Exit codes:"), HasSubstr("130  interrupted"), HasSubstr("submit"),
                                HasSubstr("--coordinator")));
  EXPECT_EQ(Run({"watch", "--help"}).exit_code, kExitOk);
  EXPECT_THAT(Run({"--version"}).out, Not(IsEmpty()));
}

class CompletionTest : public DistillctlTest {
 protected:
  // What bash offers for the last of `words`.
  std::string Complete(const std::vector<std::string>& words) {
    std::string script = "source \"$1\"; COMP_WORDS=(";
    for (const std::string& word : words) script += "'" + word + "' ";
    script += "); COMP_CWORD=" + std::to_string(words.size() - 1) +
              "; _distillctl; printf '%s\\n' \"${COMPREPLY[@]}\" | sort -u";
    Child::Options options;
    options.env = env_;
    return Child({"/bin/bash", "-u", "-c", script, "bash", script_}, options).Wait().out;
  }
  void SetUp() override {
    const ChildResult result = Run({"completion", "bash"});
    ASSERT_EQ(result.exit_code, kExitOk) << result.err;
    script_ = Write("completion.bash", result.out);
  }
  std::string script_;
};

TEST_F(CompletionTest, ScriptIsValidBash) {
  Child::Options options;
  options.env = env_;
  const ChildResult result = Child({"/bin/bash", "-n", script_}, options).Wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
}

TEST_F(CompletionTest, CompletesCommandsFlagsAndValues) {
  EXPECT_EQ(Complete({"distillctl", "s"}), "submit\n");
  EXPECT_EQ(Complete({"distillctl", ""}),
            "cancel\ncompletion\ndescribe\nfile\nfleet\nhistory\nlist\nlogs\nreport\nresults\nresume\nsubmit\ntaps\n"
            "uncordon\nwatch\n");
  EXPECT_EQ(Complete({"distillctl", "submit", "--dry"}), "--dry-run\n");
  EXPECT_EQ(Complete({"distillctl", "submit", "--coord"}), "--coordinator\n");
  EXPECT_EQ(Complete({"distillctl", "fleet", "--dry"}), "\n");
  EXPECT_EQ(Complete({"distillctl", "--output", ""}), "json\ntable\n");
  EXPECT_EQ(Complete({"distillctl", "--output", "=", "j"}), "json\n");
  EXPECT_EQ(Complete({"distillctl", "--color", "al"}), "always\n");
  EXPECT_EQ(Complete({"distillctl", "list", "--state", "f"}), "failed\n");
  EXPECT_EQ(Complete({"distillctl", "report", "j-1", "--f"}), "--force\n");
  // The value of a flag is no command.
  EXPECT_EQ(Complete({"distillctl", "--timeout", "watch", "f"}), "file\nfleet\n");
  EXPECT_EQ(Complete({"distillctl", "--timeout", "2"}), "\n");
}

TEST_F(CompletionTest, CompletesJobFilesAndJobs) {
  Write("my job.yaml", "");
  Write("other.yml", "");
  Write("notes.txt", "");
  EXPECT_EQ(Complete({"distillctl", "submit", folder_ + "/"}), folder_ + "/my job.yaml\n" + folder_ + "/other.yml\n");
  EXPECT_THAT(Complete({"distillctl", "--token-file", folder_ + "/no"}), folder_ + "/notes.txt\n");
  EXPECT_EQ(Complete({"distillctl", "report", "j-1", "-o", folder_ + "/no"}), folder_ + "/notes.txt\n");
  EXPECT_EQ(Complete({"distillctl", "watch", "j-1", "-o", ""}), "json\ntable\n");
  v1::Job job = RunningJob();
  service_.Put(job);
  job.set_id("j-2");
  service_.Put(job);
  // compgen would run this.
  job.set_id("$(touch${IFS}" + folder_ + "/hacked)");
  service_.Put(job);
  StartServer();
  EXPECT_EQ(Complete({DISTILLCTL, "watch", "j"}), "j-1\nj-2\n");
  EXPECT_EQ(Complete({DISTILLCTL, "report", "j"}), "j-1\nj-2\n");
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/hacked"));
}

TEST_F(DistillctlTest, EveryCommandAndFlagIsDocumented) {
  const ChildResult help = Run({"--help-all"});
  ASSERT_EQ(help.exit_code, kExitOk) << help.err;
  std::ifstream file(CLI_DOC);
  std::stringstream docs;
  docs << file.rdbuf();
  ASSERT_THAT(docs.str(), Not(IsEmpty())) << CLI_DOC;
  std::set<std::string> flags;
  const std::regex flag("--[a-z][-a-z0-9]*");
  for (std::sregex_iterator it(help.out.begin(), help.out.end(), flag), end; it != end; ++it) flags.insert(it->str());
  EXPECT_GT(flags.size(), 20u) << help.out;
  for (const std::string& name : flags)
    EXPECT_THAT(docs.str(), HasSubstr("`" + name)) << "docs/cli.md does not mention " << name;
  for (const char* command : {"submit", "list", "describe", "watch", "logs", "cancel", "fleet", "taps", "history",
                              "results", "report", "completion", "file"}) {
    EXPECT_THAT(help.out, HasSubstr(StrCat("\n", command, "\n"))) << command;
    EXPECT_THAT(docs.str(), HasSubstr(StrCat("\n### `distillctl ", command))) << command;
  }
  for (const int code : {0, 1, 2, 3, 4, 5, 6, 7, 8, 130})
    EXPECT_THAT(docs.str(), HasSubstr(StrCat("\n| ", code, " |"))) << code;
}

}  // namespace
}  // namespace distill::cli
