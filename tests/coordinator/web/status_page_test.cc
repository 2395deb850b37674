// The status page's HTTP side: a real coordinator with its store behind the real HTTP server.
#include "coordinator/web/status_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <tuple>

#include "common/service/service_flags.h"
#include "coordinator/cli/report_curves.h"
#include "coordinator/web/status_api.h"
#include "tests/common/http/http_test_client.h"
#include "tests/common/http/https_test_client.h"
#include "tests/common/rpc/rpc_test_util.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill::web {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

constexpr char kNasty[] = "</td><script>alert(1)</script>\"'&";

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  json Json() const { return json::parse(body, nullptr, false); }
};

Answer ParseAnswer(const std::string& text) {
  Answer answer;
  std::smatch line;
  const size_t end = text.find("\r\n\r\n");
  if (end == std::string::npos) return answer;
  answer.body = text.substr(end + 4);
  std::istringstream head(text.substr(0, end));
  std::string row;
  std::getline(head, row);
  if (row.size() > 12) answer.status = std::atoi(row.c_str() + 9);
  while (std::getline(head, row)) {
    const size_t colon = row.find(':');
    std::string name = row.substr(0, colon);
    for (char& c : name) c = static_cast<char>(std::tolower(c));
    std::string value = row.substr(colon + 2);
    while (!value.empty() && value.back() == '\r') value.pop_back();
    answer.headers[name] = value;
  }
  return answer;
}

class StatusPageTest : public testing::Test {
 protected:
  StatusPageTest() {
    Coordinator::Options options;
    options.lease_seconds = 1000;
    options.heartbeat_seconds = 1;
    options.version = "test";
    coordinator_ =
        Coordinator::Create(options, OpenSqliteJobStore(":memory:").value(), SystemClock(), &metrics_).value();
  }
  void Serve(StatusPageOptions options = {}, const HttpTls& tls = {}) {
    if (options.listen.empty()) options.listen = "127.0.0.1:0";
    options.now = [this] { return now_; };
    auto started = StartServiceHttp(
        "127.0.0.1:0", &metrics_, [] { return std::string(); }, StatusPageRoutes(coordinator_.get(), options), tls);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  // headers: "Name: value\r\n" lines. HTTP/1.1, one connection.
  Answer Send(const std::string& method, const std::string& target, const std::string& headers = "",
              const std::string& body = "", const std::string& host = "127.0.0.1:1") {
    HttpTestClient client(server_->port());
    client.Send(method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\nContent-Length: " +
                std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body);
    return ParseAnswer(client.Receive());
  }
  Answer Get(const std::string& target, const std::string& headers = "") { return Send("GET", target, headers); }
  json Api(const std::string& path) {
    const Answer answer = Get("/api/v1/" + path);
    EXPECT_EQ(answer.status, 200) << path << ": " << answer.body;
    EXPECT_EQ(answer.headers.at("content-type"), "application/json");
    return answer.Json();
  }

  void Register(const std::string& id, WorkerKind kind) {
    RegisterInput input;
    input.from = {id, "1"};
    input.kind = kind;
    input.address = "127.0.0.1:1";
    input.device = "cpu";
    input.version = "1.2.3";
    if (kind == WorkerKind::kTeacher) input.models = Fleet().models;
    const StatusOr<RegisterResult> registered = coordinator_->Register(input);
    ASSERT_TRUE(registered.ok()) << registered.status();
  }
  // A teacher, two students and the job of job_file_fixture.h running on them.
  std::string RunJob() {
    Register("t0", WorkerKind::kTeacher);
    Register("s0", WorkerKind::kStudent);
    Register("s1", WorkerKind::kStudent);
    const StatusOr<SubmitResult> job = coordinator_->Submit({"r1", {kExplicitJob, "job.yaml", {}}, false});
    EXPECT_TRUE(job.ok()) << job.status();
    Beat("s0", job->job_id, 1);
    Beat("s1", job->job_id, 1);
    return job->job_id;
  }
  void Beat(const std::string& id, const std::string& job, uint64_t generation,
            std::optional<JobProgress> progress = {}, std::vector<EventRecord> events = {}) {
    HeartbeatInput input;
    input.from = {id, "1"};
    input.job_id = job;
    input.generation = generation;
    if (progress) input.progress = {*std::move(progress)};
    input.events = std::move(events);
    ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
    coordinator_->Tick();
  }
  static JobProgress Report(uint32_t stage, uint64_t step, uint64_t total, double loss) {
    JobProgress progress;
    progress.stage = stage;
    progress.step = step;
    progress.total_step = total;
    progress.loss = loss;
    progress.images_per_second = 1234;
    progress.terms = {{"l2", loss}};
    progress.step_seconds = {{"data", 0.001}, {"forward", 0.02}};
    progress.time = 5;
    progress.phase = "training";
    return progress;
  }

  MetricsRegistry metrics_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<HttpServer> server_;
  double now_ = 1e9;
};

TEST_F(StatusPageTest, EveryAnswerCarriesTheSecurityHeaders) {
  Serve();
  for (const char* target :
       {"/", "/login", "/assets/app.js", "/assets/nothing", "/api/v1/jobs", "/api/v1/jobs/none", "/files/none"}) {
    const Answer answer = Get(target);
    EXPECT_EQ(answer.headers.at("content-security-policy"),
              "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
              "form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
        << target;
    EXPECT_EQ(answer.headers.at("x-content-type-options"), "nosniff") << target;
    EXPECT_EQ(answer.headers.at("referrer-policy"), "no-referrer") << target;
    EXPECT_EQ(answer.headers.at("x-frame-options"), "DENY") << target;
  }
}

TEST_F(StatusPageTest, FilesAreThereWithTheirTypesAndNothingInline) {
  Serve();
  EXPECT_EQ(Get("/").headers.at("content-type"), "text/html; charset=utf-8");
  const std::map<std::string, std::string> types = {{"app.js", "text/javascript; charset=utf-8"},
                                                    {"chart.js", "text/javascript; charset=utf-8"},
                                                    {"files.js", "text/javascript; charset=utf-8"},
                                                    {"format.js", "text/javascript; charset=utf-8"},
                                                    {"job.js", "text/javascript; charset=utf-8"},
                                                    {"style.css", "text/css; charset=utf-8"},
                                                    {"icon.svg", "image/svg+xml"}};
  for (const auto& [name, type] : types) {
    const Answer answer = Get("/assets/" + name);
    EXPECT_EQ(answer.status, 200) << name;
    EXPECT_EQ(answer.headers.at("content-type"), type);
    EXPECT_GT(answer.body.size(), 200u) << name;
    EXPECT_THAT(answer.body, Not(HasSubstr("innerHTML"))) << name;
    const Answer again = Get("/assets/" + name, "If-None-Match: " + answer.headers.at("etag") + "\r\n");
    EXPECT_EQ(again.status, 304) << name;
    EXPECT_THAT(again.body, IsEmpty());
  }
  const std::regex inlined(
      " on[a-z]+=| style=|<style|<script(?! type=\"module\" src=\"/assets/[a-z]+\\.js\"></script>)|https?://");
  for (const std::string& page : {Get("/").body, Get("/assets/style.css").body}) {
    std::smatch found;
    EXPECT_FALSE(std::regex_search(page, found, inlined)) << found.str();
  }
}

TEST_F(StatusPageTest, ListsJobsAsSummaries) {
  Serve();
  EXPECT_EQ(Api("jobs"), json({{"jobs", json::array()}}));
  const std::string id = RunJob();
  json job = Api("jobs")["jobs"].at(0);
  EXPECT_EQ(job["id"], id);
  EXPECT_EQ(job["name"], "mimic-job");
  EXPECT_EQ(job["state"], "running");
  EXPECT_EQ(job["stage_name"], "mimic");
  EXPECT_EQ(job["stages"], 2);
  EXPECT_EQ(job["done_steps"], 0);
  EXPECT_EQ(job["total_steps"], 217);
  EXPECT_TRUE(job["score"]["metrics"].empty());
  Beat("s0", id, 1, Report(0, 30, 30, 0.5));
  EXPECT_EQ(Api("jobs")["jobs"].at(0)["done_steps"], 30);
  ASSERT_TRUE(
      coordinator_->CommitStage({"s0", "1"}, id, 1, {.stage = 0, .checkpoint = "c0", .digest = "d0", .loss = 0.4})
          .ok());
  job = Api("jobs")["jobs"].at(0);
  EXPECT_EQ(job["done_steps"], 117);
  EXPECT_EQ(job["stage"], 1);
  ASSERT_TRUE(coordinator_->CommitStage({"s0", "1"}, id, 1, {.stage = 1, .score = {.metrics = {{"top1", 0.75}}}}).ok());
  ASSERT_TRUE(
      coordinator_->FinishJob({"s0", "1"}, id, 1, {.safetensors = "w", .student_score = {.metrics = {{"top1", 0.75}}}})
          .ok());
  job = Api("jobs")["jobs"].at(0);
  EXPECT_EQ(job["state"], "succeeded");
  EXPECT_EQ(job["done_steps"], 217);
  EXPECT_EQ(job["score"]["metrics"][0], (json{{"name", "top1"}, {"value", 0.75}}));
  ASSERT_TRUE(coordinator_->Submit({"r2", {kExplicitJob, "job.yaml", {}}, false}).ok());
  EXPECT_EQ(Api("jobs")["jobs"].size(), 2u);
  EXPECT_EQ(Api("jobs?limit=1")["jobs"].size(), 1u);
  EXPECT_NE(Api("jobs?limit=1")["jobs"].at(0)["id"], id) << "newest first";
  ASSERT_EQ(Api("jobs?state=succeeded")["jobs"].size(), 1u);
  EXPECT_EQ(Api("jobs?state=succeeded&limit=9")["jobs"].at(0)["id"], id);
  EXPECT_EQ(Api("jobs?state=failed")["jobs"].size(), 0u);
}

TEST_F(StatusPageTest, TellsAllAboutOneJob) {
  Serve();
  const std::string id = RunJob();
  Beat("s0", id, 1, Report(0, 30, 30, 0.5));
  ASSERT_TRUE(
      coordinator_->CommitStage({"s0", "1"}, id, 1, {.stage = 0, .checkpoint = "c0", .digest = "d0", .loss = 0.4})
          .ok());
  const json job = Api("jobs/" + id);
  EXPECT_EQ(job["id"], id);
  EXPECT_EQ(job["state"], "JOB_STATE_RUNNING");
  EXPECT_EQ(job["generation"], "1");
  EXPECT_THAT(job["ranks"].get<std::vector<std::string>>(), ElementsAre("s0", "s1"));
  EXPECT_EQ(job["plan"]["stages"].at(1)["losses"].size(), 3u);
  EXPECT_EQ(job["progress"]["step_seconds"].at(1)["name"], "forward");
  EXPECT_EQ(job["stages_done"].at(0)["checkpoint"], "c0");
  EXPECT_EQ(job["stages_done"].at(0)["digest"], "d0");
  EXPECT_EQ(Api("jobs/mimic-job")["id"], id) << "also by name";
  EXPECT_EQ(Get("/api/v1/jobs/" + id).headers.at("date"), "Sun, 09 Sep 2001 01:46:40 GMT");
}

TEST_F(StatusPageTest, ResultsByClassAreLeftToOthers) {
  Serve();
  const std::string id = RunJob();
  for (uint32_t stage : {0u, 1u}) ASSERT_TRUE(coordinator_->CommitStage({"s0", "1"}, id, 1, {.stage = stage}).ok());
  JobArtifacts artifacts{.safetensors = "w"};
  artifacts.student_score.metrics = {{"top1", 0.75}};
  artifacts.student_score.by_class = {.labelled = {4}, .answered = {4}, .right = {3}, .confusion = {3}};
  ASSERT_TRUE(coordinator_->FinishJob({"s0", "1"}, id, 1, artifacts).ok());
  EXPECT_EQ(coordinator_->Get(id)->artifacts.student_score, artifacts.student_score);
  const json shown = Api("jobs/" + id)["artifacts"];
  EXPECT_EQ(shown["student_score"]["metrics"].at(0)["value"], 0.75);
  EXPECT_FALSE(shown.contains("student_classes")) << shown;
}

TEST_F(StatusPageTest, CurvesAndEventsComePieceByPiece) {
  Serve();
  const std::string id = RunJob();
  const json empty = Api("jobs/" + id + "/history");
  EXPECT_EQ(empty, json({{"points", json::array()}, {"next", 0}}));
  const int points = static_cast<int>(kPageSize) + 7;
  for (int i = 1; i <= points; ++i) Beat("s0", id, 1, Report(0, i, i, 1.0 / i));
  json page = Api("jobs/" + id + "/history");
  EXPECT_EQ(page["points"].size(), kPageSize);
  EXPECT_EQ(page["points"].at(1)["total_step"], "2");
  EXPECT_EQ(page["points"].at(1)["loss"], 0.5);
  page = Api("jobs/" + id + "/history?from=" + page["next"].dump());
  EXPECT_EQ(page["points"].size(), 7u);
  page = Api("jobs/" + id + "/history?from=" + page["next"].dump());
  EXPECT_THAT(page["points"], IsEmpty());
  EXPECT_EQ(page["next"], points);

  const json events = Api("jobs/" + id + "/events")["events"];
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.at(0)["sequence"], "1");
  EXPECT_THAT(events.at(0)["text"].get<std::string>(), StartsWith("submitted"));
  EXPECT_EQ(Api("jobs/" + id + "/events?after=1")["events"].size(), events.size() - 1);
  EXPECT_THAT(Api("jobs/" + id + "/events?after=999")["events"], IsEmpty());
}

TEST_F(StatusPageTest, ValuesThatAreNoNumbersArrive) {
  Serve();
  const std::string id = RunJob();
  Beat("s0", id, 1, Report(0, 1, 1, std::nan("")));
  EXPECT_EQ(Api("jobs/" + id + "/history")["points"].at(0)["loss"], "NaN");
}

// The page and the report find the groups of ranks by the types of events.
TEST_F(StatusPageTest, EventsTellOfGroupsAsThePageReadsThem) {
  Serve();
  const std::string id = RunJob();
  ASSERT_TRUE(coordinator_->ReportFailure({"s1", "1"}, id, 1, FailureKind::kPassing, "lost a peer").ok());
  Beat("s0", "", 0);
  Beat("s1", "", 0);
  ASSERT_EQ(coordinator_->Get(id)->status.generation, 2u);
  ASSERT_EQ(coordinator_->Get(id)->status.state, JobState::kRunning);
  std::vector<v1::JobEvent> events;
  std::vector<std::string> kinds;
  const json stored = Api("jobs/" + id + "/events");
  for (const json& event : stored["events"]) {
    v1::JobEvent& one = events.emplace_back();
    v1::EventType type = v1::EVENT_TYPE_UNSPECIFIED;
    ASSERT_TRUE(v1::EventType_Parse(event["type"].get<std::string>(), &type)) << event;
    one.set_type(type);
    one.set_generation(std::stoull(event["generation"].get<std::string>()));
    one.set_time(event["time"].get<double>());
    if (type == v1::EVENT_TYPE_GROUP_FORMED || type == v1::EVENT_TYPE_GROUP_LOST) kinds.push_back(event["type"]);
  }
  EXPECT_THAT(kinds, ElementsAre("EVENT_TYPE_GROUP_FORMED", "EVENT_TYPE_GROUP_LOST", "EVENT_TYPE_GROUP_FORMED"));
  EXPECT_THAT(Get("/assets/job.js").body,
              AllOf(HasSubstr("'EVENT_TYPE_GROUP_FORMED'"), HasSubstr("'EVENT_TYPE_GROUP_LOST'")));
  const std::vector<cli::RankGroup> groups = cli::GroupsOf(events);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].generation, 1u);
  EXPECT_TRUE(groups[0].lost.has_value());
  EXPECT_EQ(groups[1].generation, 2u);
  EXPECT_FALSE(groups[1].lost.has_value());
}

TEST_F(StatusPageTest, TellsOfTheFleet) {
  Serve();
  RunJob();
  const json fleet = Api("fleet");
  EXPECT_EQ(fleet["coordinator_version"], "test");
  EXPECT_EQ(fleet["coordinator_epoch"], "1");
  ASSERT_EQ(fleet["workers"].size(), 3u);
  EXPECT_EQ(fleet["workers"].at(0)["id"], "s0");
  EXPECT_EQ(fleet["workers"].at(0)["state"], "training");
  EXPECT_EQ(fleet["workers"].at(0)["device"], "cpu");
  EXPECT_EQ(fleet["workers"].at(2)["kind"], "teacher");
  EXPECT_EQ(fleet["workers"].at(2)["models"].at(0)["digest"], "d1d1d1d1d1d1d1d1");
}

TEST_F(StatusPageTest, UnchangedDocumentsAreNotSentAgain) {
  Serve();
  const std::string id = RunJob();
  const Answer first = Get("/api/v1/jobs/" + id);
  const std::string condition = "If-None-Match: " + first.headers.at("etag") + "\r\n";
  EXPECT_EQ(first.headers.at("cache-control"), "no-store");
  const Answer second = Get("/api/v1/jobs/" + id, condition);
  EXPECT_EQ(second.status, 304);
  EXPECT_THAT(second.body, IsEmpty());
  Beat("s0", id, 1, Report(0, 30, 30, 0.5));
  const Answer third = Get("/api/v1/jobs/" + id, condition);
  EXPECT_EQ(third.status, 200);
  EXPECT_NE(third.headers.at("etag"), first.headers.at("etag"));
}

TEST_F(StatusPageTest, BadRequestsAreAnsweredInWords) {
  Serve();
  const std::string id = RunJob();
  const auto error = [&](const std::string& target, int status) {
    const Answer answer = Get(target);
    EXPECT_EQ(answer.status, status) << target << ": " << answer.body;
    return answer.body;
  };
  EXPECT_THAT(error("/api/v1/jobs/none", 404), HasSubstr("no job has the id or name 'none'"));
  EXPECT_THAT(error("/api/v1/jobs/", 400), HasSubstr("letters"));
  EXPECT_THAT(error("/api/v1/jobs/%3Cscript%3E", 400), AllOf(HasSubstr("letters"), Not(HasSubstr("<script>"))));
  error("/api/v1/jobs/" + std::string(200, 'a'), 400);
  error("/api/v1/jobs/" + id + "/", 404);
  error("/api/v1/jobs/" + id + "/secrets", 404);
  error("/api/v1/jobs/" + id + "/events/1", 404);
  error("/api/v1/", 404);
  error("/api/v1/nothing", 404);
  error("/api/v2/jobs", 404);
  for (const char* bad : {"-1", "1.5", "x", "", "99999999999999999999999", "18446744073709551615", "1%00"}) {
    EXPECT_THAT(error("/api/v1/jobs/" + id + "/events?after=" + bad, 400), HasSubstr("whole number")) << bad;
    EXPECT_THAT(error("/api/v1/jobs/" + id + "/history?from=" + bad, 400), HasSubstr("whole number")) << bad;
    EXPECT_THAT(error("/api/v1/jobs?limit=" + std::string(bad), 400), HasSubstr("whole number")) << bad;
  }
  error("/api/v1/jobs?limit=1001", 400);
  EXPECT_THAT(error("/api/v1/jobs?state=walking", 400), HasSubstr("queued, running"));
  EXPECT_EQ(Get("/api/v1/jobs?x=" + std::string(20000, 'y')).status, 431);
  EXPECT_EQ(Get("/api/v1/jobs?x=" + std::string(8000, 'y')).status, 200);
  EXPECT_EQ(Send("POST", "/api/v1/jobs").status, 405);
  EXPECT_EQ(Send("DELETE", "/api/v1/jobs/" + id).status, 405);
  EXPECT_EQ(Send("POST", "/").status, 405);
}

TEST_F(StatusPageTest, PathsLeadNowhereElse) {
  Serve();
  for (const char* target : {"/assets/../index.html", "/assets/%2e%2e/%2e%2e/etc/passwd", "/assets//etc/passwd",
                             "/assets/..%2f..%2fetc/passwd", "/assets/app.js%00.css", "/assets/", "/assets/index.html",
                             "/assets/login.html", "/index.html", "/../../etc/passwd"}) {
    EXPECT_EQ(Get(target).status, 404) << target;
  }
  EXPECT_EQ(Get("/api/v1/jobs/../../../etc/passwd").status, 404);
  EXPECT_EQ(Get("/api/v1/jobs/%2e%2e/%2e%2e/etc/passwd").status, 404);
  EXPECT_EQ(Get("/api/v1/jobs/..").status, 404) << "a name that no job has";
}

TEST_F(StatusPageTest, TextsOfUsersAndWorkersStayText) {
  Serve();
  const std::string id = RunJob();
  EventRecord event;
  event.job_id = id;
  event.text = kNasty;
  event.source_sequence = 1;
  Beat("s1", id, 1, {}, {event});
  ASSERT_TRUE(coordinator_->Cancel(id, kNasty).ok());
  const json events = Api("jobs/" + id + "/events")["events"];
  const bool kept = std::any_of(events.begin(), events.end(), [](const json& e) { return e["text"] == kNasty; });
  EXPECT_TRUE(kept) << events;
  EXPECT_THAT(Get("/").body, Not(HasSubstr("alert")));
}

// --- files ---

// A folder as students fill it, for the job that runs, and things in it that must not be shown.
class JobFilesTest : public StatusPageTest {
 protected:
  JobFilesTest() {
    std::string made = testing::TempDir() + "job_files_XXXXXX";
    EXPECT_NE(mkdtemp(made.data()), nullptr);
    root_ = made;
    work_ = root_ / "work";
    job_ = RunJob();
    Write(work_ / job_ / "student.safetensors", "0123456789");
    Write(work_ / job_ / "checkpoints/stage-0-step-10/model.safetensors", "weights");
    Write(work_ / job_ / "checkpoints/.tmp-1/model.safetensors", "half");
    Write(root_ / "secret", "secret");
  }
  ~JobFilesTest() override { fs::remove_all(root_); }
  static void Write(const fs::path& path, const std::string& content) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
  }
  void ServeFiles(const std::string& token = "") { Serve({.token = token, .files_dir = work_.string()}); }
  std::string Address(const std::string& path) const { return "/files/" + job_ + "/" + path; }

  fs::path root_, work_;
  std::string job_;
};

TEST_F(JobFilesTest, ListsAJobsFilesAndGivesThem) {
  ServeFiles();
  EXPECT_EQ(Get("/api/v1/session").Json(), json({{"login", false}, {"files", true}}));
  for (const std::string& name : {job_, std::string("mimic-job")}) {
    const json listed = Api("jobs/" + name + "/files");
    EXPECT_EQ(listed["problem"], "");
    ASSERT_EQ(listed["files"].size(), 2u) << listed;
    EXPECT_EQ(listed["files"].at(0)["path"], "checkpoints/stage-0-step-10/model.safetensors");
    EXPECT_EQ(listed["files"].at(1)["path"], "student.safetensors");
    EXPECT_EQ(listed["files"].at(1)["bytes"], 10);
    EXPECT_GT(listed["files"].at(1)["modified_time"], 1.6e9);
  }
  const Answer file = Get(Address("student.safetensors"));
  EXPECT_EQ(file.status, 200);
  EXPECT_EQ(file.body, "0123456789");
  EXPECT_EQ(file.headers.at("content-type"), "application/octet-stream");
  EXPECT_EQ(file.headers.at("content-disposition"), "attachment; filename=\"" + job_ + "-student.safetensors\"");
  EXPECT_EQ(file.headers.at("x-content-type-options"), "nosniff");
  EXPECT_THAT(file.headers.at("content-security-policy"), StartsWith("default-src 'none'"));
  EXPECT_EQ(Get(Address("checkpoints/stage-0-step-10/model.safetensors")).body, "weights");
  EXPECT_EQ(Get(Address("student.safetensors"), "If-None-Match: " + file.headers.at("etag") + "\r\n").status, 304);
  HttpTestClient head(server_->port());
  head.Send("HEAD " + Address("student.safetensors") + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
  const Answer known = ParseAnswer(head.Receive(true));
  EXPECT_EQ(known.status, 200);
  EXPECT_EQ(known.headers.at("content-length"), "10");
  EXPECT_THAT(known.body, IsEmpty());
  EXPECT_EQ(Send("POST", Address("student.safetensors")).status, 405);
}

TEST_F(JobFilesTest, GivesPartsOfAFile) {
  ServeFiles();
  const std::string address = Address("student.safetensors");
  const std::string tag = Get(address).headers.at("etag");
  const auto part = [&](const std::string& range) { return Get(address, "Range: " + range + "\r\n"); };
  const std::vector<std::tuple<std::string, std::string, std::string>> parts = {
      {"bytes=0-3", "0123", "bytes 0-3/10"},
      {"bytes=4-", "456789", "bytes 4-9/10"},
      {"bytes=-3", "789", "bytes 7-9/10"},
      {"bytes=8-99", "89", "bytes 8-9/10"},
      {"bytes=-99", "0123456789", "bytes 0-9/10"}};
  for (const auto& [range, body, described] : parts) {
    const Answer answer = part(range);
    EXPECT_EQ(answer.status, 206) << range;
    EXPECT_EQ(answer.body, body) << range;
    EXPECT_EQ(answer.headers.at("content-range"), described);
  }
  for (const char* outside : {"bytes=10-", "bytes=10-12", "bytes=-0", "bytes=18446744073709551615-"}) {
    const Answer answer = part(outside);
    EXPECT_EQ(answer.status, 416) << outside;
    EXPECT_EQ(answer.headers.at("content-range"), "bytes */10");
  }
  for (const char* odd : {"bytes=3-1", "bytes=a-b", "bytes=", "bytes=-", "rows=0-1", "bytes=0-1,3-4", "bytes=--1"}) {
    const Answer answer = part(odd);
    EXPECT_EQ(answer.status, 200) << odd;
    EXPECT_EQ(answer.body, "0123456789") << odd;
  }
  EXPECT_EQ(Get(address, "Range: bytes=0-0\r\nIf-Range: " + tag + "\r\n").body, "0");
  EXPECT_EQ(Get(address, "Range: bytes=0-0\r\nIf-Range: \"other\"\r\n").body, "0123456789");
}

TEST_F(JobFilesTest, NothingLeadsOutOfAJobsFolder) {
  Write(work_ / "other-job/student.pt", "of a job that this coordinator does not know");
  Write(work_ / job_ / "a b.txt", "x");
  fs::create_symlink(root_ / "secret", work_ / job_ / "link");
  fs::create_symlink("../../secret", work_ / job_ / "relative-link");
  fs::create_symlink(root_, work_ / job_ / "folder-link");
  fs::create_symlink("student.safetensors", work_ / job_ / "link-inside");
  ASSERT_EQ(mkfifo((work_ / job_ / "pipe").c_str(), 0600), 0);
  ServeFiles();
  EXPECT_EQ(Api("jobs/" + job_ + "/files")["files"].size(), 2u) << Api("jobs/" + job_ + "/files");
  for (const std::string& target : {Address("link"),
                                    Address("relative-link"),
                                    Address("folder-link/secret"),
                                    Address("link-inside"),
                                    Address("pipe"),
                                    Address("checkpoints"),
                                    Address("checkpoints/"),
                                    Address(""),
                                    Address("absent"),
                                    Address("../secret"),
                                    Address("../../secret"),
                                    Address("%2e%2e/%2e%2e/secret"),
                                    Address("..%2f..%2fsecret"),
                                    Address("checkpoints/../student.safetensors"),
                                    Address("./student.safetensors"),
                                    Address("/student.safetensors"),
                                    Address("checkpoints//stage-0-step-10/model.safetensors"),
                                    Address("student.safetensors/"),
                                    Address("student.safetensors%00.txt"),
                                    Address("a%20b.txt"),
                                    Address("checkpoints/.tmp-1/model.safetensors"),
                                    Address("checkpoints/stage-0-step-10/model.safetensors/x"),
                                    Address("a/b/c/d/e"),
                                    "/files/" + job_,
                                    std::string("/files/"),
                                    std::string("/files/other-job/student.pt"),
                                    std::string("/files/mimic-job/student.safetensors"),
                                    std::string("/files/../secret"),
                                    std::string("/files/%2e%2e/secret"),
                                    std::string("/files//etc/passwd"),
                                    "/files/" + (root_ / "secret").string()}) {
    const Answer answer = Get(target);
    EXPECT_EQ(answer.status, 404) << target;
    EXPECT_THAT(answer.Json()["error"].get<std::string>(), StartsWith("no such file")) << target;
  }
}

TEST_F(JobFilesTest, FilesNeedTheToken) {
  ServeFiles("secret");
  for (const std::string& target : {Address("student.safetensors"), "/api/v1/jobs/" + job_ + "/files"}) {
    EXPECT_EQ(Get(target).status, 401) << target;
    const Answer wrong = Get(target, "Authorization: Bearer guess\r\n");
    EXPECT_EQ(wrong.status, 401) << target;
    EXPECT_THAT(wrong.body, HasSubstr("the token is wrong"));
    EXPECT_EQ(Get(target, "Authorization: Bearer secret\r\n").status, 200) << target;
  }
  const std::string set = Send("POST", "/login", "", "token=secret").headers.at("set-cookie");
  EXPECT_EQ(Get(Address("student.safetensors"), "Cookie: " + set.substr(0, set.find(';')) + "\r\n").body, "0123456789");
}

TEST_F(JobFilesTest, ABigFileIsNotHeldInMemory) {
  const fs::path path = work_ / job_ / "student.safetensors";
  constexpr uint64_t kBytes = 256u << 20;  // sparse: takes no space
  fs::resize_file(path, kBytes);
  ServeFiles();
  const auto peak = [] {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) << 10;
    }
    return 0ULL;
  };
  const uint64_t before = peak();
  ASSERT_GT(before, 0u);
  HttpTestClient client(server_->port());
  client.Send("GET " + Address("student.safetensors") + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
  uint64_t head = 0;
  const uint64_t bytes = client.Drain(&head);
  EXPECT_EQ(bytes - head, kBytes);
  EXPECT_LT(peak() - before, 64u << 20);
}

TEST_F(JobFilesTest, TellsWhatIsWrongWithTheFolder) {
  Serve();
  const Answer off = Get(Address("student.safetensors"));
  EXPECT_EQ(off.status, 404);
  EXPECT_THAT(off.body, HasSubstr("--files-dir"));
  EXPECT_THAT(Get("/api/v1/jobs/" + job_ + "/files").body, HasSubstr("--files-dir"));
  ServeFiles();
  EXPECT_EQ(Get("/api/v1/jobs/none/files").status, 404);
  EXPECT_THAT(Get("/api/v1/jobs/none/files").body, HasSubstr("no job has the id or name 'none'"));
  EXPECT_EQ(Get("/api/v1/jobs//files").status, 400);
  fs::remove_all(work_ / job_);
  EXPECT_EQ(Api("jobs/" + job_ + "/files"), json({{"files", json::array()}, {"problem", ""}})) << "nothing written yet";
  fs::remove_all(work_);
  EXPECT_THAT(Api("jobs/" + job_ + "/files")["problem"].get<std::string>(),
              AllOf(HasSubstr("--files-dir " + work_.string()), HasSubstr("No such file"), HasSubstr("--work-dir")));
  EXPECT_EQ(Get(Address("student.safetensors")).status, 503);
  Write(work_, "a file");
  EXPECT_THAT(Api("jobs/" + job_ + "/files")["problem"].get<std::string>(), HasSubstr("Not a directory"));
}

// --- who may see it ---

TEST_F(StatusPageTest, WithATokenDataNeedsIt) {
  Serve({.token = "secret"});
  for (const char* target :
       {"/api/v1/jobs", "/api/v1/fleet", "/api/v1/jobs/none", "/api/v1/nothing", "/api/v1/session"}) {
    const Answer answer = Get(target);
    EXPECT_EQ(answer.status, 401) << target;
    EXPECT_EQ(answer.headers.at("www-authenticate"), "Bearer realm=\"distill\"");
    EXPECT_THAT(answer.Json()["error"].get<std::string>(), HasSubstr("a token is needed"));
  }
  const Answer page = Get("/");
  EXPECT_EQ(page.status, 303);
  EXPECT_EQ(page.headers.at("location"), "/login");
  EXPECT_EQ(Get("/api/v1/jobs", "Authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(Get("/", "Authorization: Bearer secret\r\n").status, 200);
  const Answer wrong = Get("/api/v1/jobs", "Authorization: Bearer guess\r\n");
  EXPECT_EQ(wrong.status, 401);
  EXPECT_THAT(wrong.body, HasSubstr("the token is wrong"));
  // Probes, scrapers and the files of the page go on without.
  for (const char* target : {"/metrics", "/healthz", "/readyz", "/login", "/assets/style.css"}) {
    EXPECT_EQ(Get(target).status, 200) << target;
  }
}

TEST_F(StatusPageTest, LogsInAndOutWithTheForm) {
  Serve({.token = "sec+ret"});
  EXPECT_THAT(Get("/login").body, AllOf(HasSubstr("type=\"password\""), Not(HasSubstr("role=\"alert\""))));
  const Answer wrong = Send("POST", "/login", "", "token=sec");
  EXPECT_EQ(wrong.status, 401);
  EXPECT_THAT(wrong.body, AllOf(HasSubstr("role=\"alert\""), HasSubstr("not the coordinator's token")));
  EXPECT_FALSE(wrong.headers.contains("set-cookie"));
  EXPECT_EQ(Send("POST", "/login", "", "").status, 401);
  const Answer right = Send("POST", "/login", "", "token=sec%2Bret");
  EXPECT_EQ(right.status, 303);
  EXPECT_EQ(right.headers.at("location"), "/");
  const std::string set = right.headers.at("set-cookie");
  EXPECT_THAT(set, AllOf(HasSubstr("; HttpOnly"), HasSubstr("; SameSite=Strict"), Not(HasSubstr("Secure")),
                         Not(HasSubstr("sec"))));
  const std::string cookie = "Cookie: " + set.substr(0, set.find(';')) + "\r\n";
  EXPECT_EQ(Get("/", cookie).status, 200);
  EXPECT_EQ(Get("/api/v1/jobs", cookie).status, 200);
  EXPECT_EQ(Get("/api/v1/session", cookie).Json(), json({{"login", true}, {"files", false}}));
  EXPECT_EQ(Get("/login", cookie).status, 303) << "nothing to log in to";
  const Answer out = Send("POST", "/logout", cookie);
  EXPECT_EQ(out.status, 303);
  EXPECT_THAT(out.headers.at("set-cookie"), HasSubstr("Max-Age=0"));
  EXPECT_EQ(Send("GET", "/logout", cookie).status, 405) << "a link must not log anybody out";
  now_ += 13 * 3600;
  EXPECT_EQ(Get("/api/v1/jobs", cookie).status, 401) << "the session has ended";
}

TEST_F(StatusPageTest, FormsOfOtherSitesNeitherLogOutNorMakeAnybodyWait) {
  Serve({.token = "secret"});
  for (const char* site : {"cross-site", "same-site"}) {
    const std::string from = std::string("Sec-Fetch-Site: ") + site + "\r\n";
    for (int i = 0; i < 10; ++i) EXPECT_EQ(Send("POST", "/login", from, "token=guess").status, 403);
    const Answer out = Send("POST", "/logout", from);
    EXPECT_EQ(out.status, 403);
    EXPECT_FALSE(out.headers.contains("set-cookie"));
  }
  for (const char* site : {"same-origin", "none"}) {
    const std::string from = std::string("Sec-Fetch-Site: ") + site + "\r\n";
    EXPECT_EQ(Send("POST", "/login", from, "token=secret").status, 303) << site;
    EXPECT_EQ(Send("POST", "/logout", from).status, 303) << site;
  }
}

TEST_F(StatusPageTest, GuessingIsSlowedDown) {
  Serve({.token = "secret"});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Send("POST", "/login", "", "token=guess").status, 401);
  const Answer form = Send("POST", "/login", "", "token=secret");
  EXPECT_EQ(form.status, 429);
  EXPECT_EQ(form.headers.at("retry-after"), "10");
  EXPECT_THAT(form.body, HasSubstr("Try again in 10 s"));
  const Answer api = Get("/api/v1/jobs", "Authorization: Bearer secret\r\n");
  EXPECT_EQ(api.status, 429);
  EXPECT_EQ(api.headers.at("retry-after"), "10");
  EXPECT_EQ(Get("/", "Authorization: Bearer secret\r\n").status, 429);
  EXPECT_EQ(Get("/api/v1/jobs").status, 401) << "no guess, no wait";
  now_ += 10;
  EXPECT_EQ(Get("/api/v1/jobs", "Authorization: Bearer secret\r\n").status, 200);
}

TEST_F(StatusPageTest, WithoutATokenOnlyThisMachinesNamesAreAnswered) {
  Serve();
  for (const char* host : {"127.0.0.1:1", "localhost:7071", "localhost", "[::1]:80", "127.9.9.9"}) {
    EXPECT_EQ(Send("GET", "/api/v1/jobs", "", "", host).status, 200) << host;
  }
  for (const char* host : {"evil.example", "evil.example:7071", "localhost.evil.example", "127.0.0.1.evil.example:1"}) {
    EXPECT_EQ(Send("GET", "/api/v1/jobs", "", "", host).status, 403) << host;
    EXPECT_EQ(Send("GET", "/", "", "", host).status, 403) << host;
  }
  EXPECT_EQ(Get("/api/v1/session").Json(), json({{"login", false}, {"files", false}}));
  EXPECT_EQ(Get("/login").status, 303) << "nothing to log in to";
  Serve({.token = "secret"});
  EXPECT_EQ(Send("GET", "/api/v1/jobs", "Authorization: Bearer secret\r\n", "", "cluster.example").status, 200);
}

TEST_F(StatusPageTest, OffLoopbackThePageNeedsTlsAndToken) {
  const auto refused = [&](const StatusPageOptions& options) {
    Serve(options);
    for (const char* target : {"/", "/login", "/assets/app.js", "/api/v1/jobs", "/files/none/student.pt"}) {
      EXPECT_EQ(Get(target, "Authorization: Bearer secret\r\n").status, 403) << target;
    }
    EXPECT_EQ(Send("POST", "/login", "", "token=secret").status, 403);
    EXPECT_EQ(Get("/metrics").status, 200);
    EXPECT_EQ(Get("/healthz").status, 200);
    return Get("/").body;
  };
  EXPECT_THAT(refused({.listen = "0.0.0.0:1"}),
              AllOf(HasSubstr("--token-file"), HasSubstr("--tls-cert"), HasSubstr("--insecure")));
  EXPECT_THAT(refused({.listen = "0.0.0.0:1", .token = "secret"}), HasSubstr("--tls-cert"));
  EXPECT_THAT(refused({.listen = "0.0.0.0:1", .tls = true}), HasSubstr("--token-file"));
  EXPECT_THAT(refused({.listen = "0.0.0.0:1", .token = "secret", .tls = true}), HasSubstr("https://"));
  Serve({.listen = "0.0.0.0:1", .token = "secret", .insecure = true});
  EXPECT_EQ(Get("/api/v1/jobs").status, 401);
  EXPECT_EQ(Get("/api/v1/jobs", "Authorization: Bearer secret\r\n").status, 200);
  Serve({.listen = "0.0.0.0:1", .insecure = true});
  EXPECT_EQ(Send("GET", "/api/v1/jobs", "", "", "cluster.example").status, 200);
}

TEST_F(StatusPageTest, OverTlsTheCookieIsSecure) {
  const KeyAndCertificate made = MakeCertificate("status");
  Serve({.listen = "0.0.0.0:1", .token = "secret", .tls = true}, {.certificate = made.certificate, .key = made.key});
  const auto send = [&](const std::string& request) {
    return ParseAnswer(
        HttpsExchange(server_->port(), request + "Connection: close\r\nHost: x\r\n\r\n", made.certificate));
  };
  EXPECT_EQ(send("GET / HTTP/1.1\r\n").status, 303);
  EXPECT_EQ(send("GET /api/v1/jobs HTTP/1.1\r\nAuthorization: Bearer secret\r\n").status, 200);
  const Answer in = ParseAnswer(HttpsExchange(
      server_->port(), "POST /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 12\r\n\r\ntoken=secret",
      made.certificate));
  EXPECT_EQ(in.status, 303);
  EXPECT_THAT(in.headers.at("set-cookie"), EndsWith("; Secure"));
  EXPECT_EQ(send("GET /metrics HTTP/1.1\r\n").status, 200);
  EXPECT_EQ(Get("/metrics").status, 200) << "scrapers without TLS go on";
}

}  // namespace
}  // namespace distill::web
