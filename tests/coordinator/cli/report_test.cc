#include "coordinator/cli/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/str_cat.h"
#include "coordinator/cli/report_curves.h"
#include "coordinator/cli/report_plot.h"
#include "coordinator/cli/results_view.h"
#include "tests/coordinator/cli/sample_jobs.h"

namespace distill::cli {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

constexpr char kNasty[] = "</td><script>alert(1)</script>\"'&\x1b[2J";
constexpr char kNastyEscaped[] = "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;\\x1b[2J";

v1::Progress* AddPoint(v1::GetHistoryResponse* history, uint32_t stage, uint64_t step, uint64_t total, double loss) {
  v1::Progress* point = history->add_points();
  point->set_stage(stage);
  point->set_step(step);
  point->set_total_step(total);
  point->set_loss(loss);
  point->set_images_per_second(2000);
  point->set_time(kSubmitted + static_cast<double>(total));
  v1::NamedValue* term = point->add_terms();
  term->set_name(stage == 0 ? "l2" : "kd");
  term->set_value(loss * 2);
  for (const auto& [name, seconds] : {std::pair{"data", 0.001}, {"forward", 0.02}, {"backward", 0.03}}) {
    v1::NamedValue* part = point->add_step_seconds();
    part->set_name(name);
    part->set_value(seconds);
  }
  return point;
}

v1::JobEvent MakeEvent(double time, const std::string& source, const std::string& text,
                       v1::EventType type = v1::EVENT_TYPE_GENERAL, uint64_t generation = 0) {
  v1::JobEvent event;
  event.set_type(type);
  event.set_generation(generation);
  event.set_time(time);
  event.set_source(source);
  event.set_text(text);
  event.set_level(v1::EVENT_LEVEL_INFO);
  return event;
}

ReportInput Sample(const v1::Job& job) {
  ReportInput input;
  input.job = job;
  for (uint64_t step = 100; step <= 300; step += 100) AddPoint(&input.history, 0, step, step, 1.0 / step);
  AddPoint(&input.history, 1, 0, 300, 0)->clear_terms();
  for (uint64_t step = 100; step <= 400; step += 100) AddPoint(&input.history, 1, step, 300 + step, 5.0 / step);
  SetScore({{"top1", 0.5}}, input.history.mutable_points(5)->mutable_score());
  input.events = {MakeEvent(kSubmitted, "coordinator", "submitted: 3 stage(s)"),
                  MakeEvent(kSubmitted + 10, "coordinator", "generation 1: s0, s1", v1::EVENT_TYPE_GROUP_FORMED, 1),
                  MakeEvent(kSubmitted + 50, "coordinator",
                            "group lost: s1 has been silent; re-forming as generation 2", v1::EVENT_TYPE_GROUP_LOST, 1),
                  MakeEvent(kSubmitted + 60, "coordinator", "generation 2: s0, s1", v1::EVENT_TYPE_GROUP_FORMED, 2)};
  v1::WorkerInfo* worker = input.fleet.add_workers();
  worker->set_id(job.ranks_size() > 0 ? job.ranks(0) : "s0");
  worker->set_kind("student");
  worker->set_device("cuda:0 NVIDIA H200");
  worker->set_version("9.8.7");
  worker->set_state("training");
  input.fleet.set_coordinator_version("1.2.3 (cpu)");
  input.fleet.set_coordinator_epoch(4);
  input.now = kSubmitted + 100;
  input.plan_json = "{\n \"name\": \"fashion\"\n}\n";
  input.cli_version = "1.2.3";
  return input;
}

std::string Render(const ReportInput& input) { return RenderReport(input, absl::UTCTimeZone()); }

class ReportTest : public testing::Test {
 protected:
  ReportTest() {
    std::string folder = testing::TempDir() + "report_XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  ~ReportTest() override { std::filesystem::remove_all(folder_); }
  std::string Read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  // What check_html.py says of the report; starts with "fault" when it finds one.
  std::string Check(const std::string& html) {
    const std::string path = folder_ + "/report.html";
    std::ofstream(path) << html;
    std::FILE* const pipe = popen(StrCat("python3 ", CHECK_HTML, " ", path, " 2>&1").c_str(), "r");
    std::string said;
    char block[512];
    for (size_t n; (n = fread(block, 1, sizeof block, pipe)) > 0;) said.append(block, n);
    return pclose(pipe) == 0 ? said : "fault: " + said;
  }
  std::string folder_;
};

TEST_F(ReportTest, TellsAllAboutAFinishedJob) {
  const v1::Job job = SucceededJob();
  const ReportInput input = Sample(job);
  const std::string html = Render(input);
  EXPECT_EQ(Check(html), "svg 6 table 7\n");
  // Results as `distillctl results` has them.
  for (const ResultRow& row : ResultRows({job})) {
    for (const std::string& cell : {row.model, row.network, row.score, row.parameters, row.size, row.wall_time}) {
      EXPECT_THAT(html, HasSubstr(EscapeHtml(cell)));
    }
  }
  EXPECT_THAT(html, HasSubstr(job.plan().teachers(0).digest()));
  for (const v1::StageResult& stage : job.stages_done()) {
    EXPECT_THAT(html, AllOf(HasSubstr(stage.checkpoint()), HasSubstr(stage.digest())));
  }
  EXPECT_THAT(html, AllOf(HasSubstr(job.artifacts().safetensors()), HasSubstr(job.artifacts().torchscript())));
  EXPECT_THAT(html, AllOf(HasSubstr("1.2.3 (cpu), epoch 4"), HasSubstr("cuda:0 NVIDIA H200"), HasSubstr("9.8.7")));
  EXPECT_THAT(html, HasSubstr("group lost: s1 has been silent"));
  EXPECT_THAT(html, AllOf(HasSubstr("Plan of fashion"), HasSubstr("&quot;name&quot;: &quot;fashion&quot;")));
  EXPECT_THAT(html, HasSubstr("state succeeded"));
  EXPECT_THAT(html, AllOf(HasSubstr("prefers-color-scheme: dark"), HasSubstr("default-src 'none'")));
}

TEST_F(ReportTest, WorksForJobsInAnyState) {
  const std::string running = Render(Sample(RunningJob()));
  EXPECT_EQ(Check(running), "svg 6 table 6\n");
  EXPECT_THAT(running, AllOf(HasSubstr("state running"), HasSubstr("2 whole, 420 of 1050 steps"),
                             HasSubstr("3 head, 200 steps, not started")));
  v1::Job failed = RunningJob();
  failed.set_state(v1::JOB_STATE_FAILED);
  failed.set_reason("student-0: the data folder is missing");
  failed.set_finished_time(kSubmitted + 90);
  const std::string html = Render(Sample(failed));
  EXPECT_THAT(Check(html), Not(HasSubstr("fault")));
  EXPECT_THAT(
      html, AllOf(HasSubstr("state failed"), HasSubstr("the data folder is missing"), HasSubstr("class=\"stopped\"")));
  ReportInput queued;
  queued.job = QueuedJob();
  queued.now = kSubmitted + 5;
  const std::string early = Render(queued);
  EXPECT_EQ(Check(early), "svg 1 table 4\n") << "only the timeline has something to draw";
  EXPECT_THAT(early, AllOf(HasSubstr("Nothing was reported."), HasSubstr("No stage was committed."),
                           HasSubstr("waiting for students and teachers, 5.0s")));
  EXPECT_THAT(Check(Render(ReportInput{})), Not(HasSubstr("fault"))) << "a coordinator that knows nothing";
}

TEST_F(ReportTest, TextsOfOthersStayText) {
  ReportInput input = Sample(SucceededJob());
  input.job.set_name(kNasty);
  input.job.set_id(kNasty);
  input.job.set_reason(kNasty);
  input.job.mutable_plan()->set_name(kNasty);
  input.job.mutable_plan()->mutable_stages(0)->set_name(kNasty);
  input.job.mutable_plan()->mutable_stages(0)->mutable_losses(0)->set_name(kNasty);
  input.job.mutable_plan()->mutable_teachers(0)->set_model(kNasty);
  input.job.mutable_stages_done(0)->set_checkpoint(kNasty);
  input.job.mutable_artifacts()->set_safetensors(kNasty);
  input.history.mutable_points(0)->mutable_terms(0)->set_name(kNasty);
  input.history.mutable_points(0)->mutable_step_seconds(0)->set_name(kNasty);
  input.events.push_back(MakeEvent(kSubmitted, kNasty, kNasty));
  input.fleet.mutable_workers(0)->set_device(kNasty);
  input.fleet.set_coordinator_version(kNasty);
  input.plan_json = kNasty;
  const std::string html = Render(input);
  EXPECT_THAT(html, AllOf(Not(HasSubstr("<script")), Not(HasSubstr("\x1b")), HasSubstr(kNastyEscaped)));
  EXPECT_EQ(Check(html), "svg 6 table 7\n");
}

TEST_F(ReportTest, OddNumbersDoNotBreakThePlots) {
  ReportInput input = Sample(RunningJob());
  AddPoint(&input.history, 1, 500, 800, std::nan(""));
  AddPoint(&input.history, 1, 510, 810, HUGE_VAL);
  AddPoint(&input.history, 1, 520, 820, -1e300);
  AddPoint(&input.history, 1, 530, 830, 0);
  input.history.mutable_points(2)->mutable_step_seconds(0)->set_value(std::nan(""));
  input.history.mutable_points(3)->set_images_per_second(-HUGE_VAL);
  EXPECT_EQ(Check(Render(input)), "svg 6 table 6\n");
}

TEST_F(ReportTest, CurvesGoByStepAndBreakBetweenStages) {
  v1::GetHistoryResponse history;
  AddPoint(&history, 0, 10, 10, 4);
  AddPoint(&history, 0, 20, 20, 3);
  AddPoint(&history, 0, 10, 10, 5);  // done again after a restart: counts
  AddPoint(&history, 1, 10, 30, 2);
  const std::vector<PlotSeries> loss = LossSeries(history);
  ASSERT_THAT(loss, SizeIs(3));
  EXPECT_EQ(loss[0].name, "loss (weighted sum)");
  ASSERT_THAT(loss[0].points, SizeIs(3));
  EXPECT_EQ(loss[0].points[0].y, 5);
  EXPECT_EQ(loss[0].points[2].part, 1);
  EXPECT_EQ(loss[1].name, "l2");
  EXPECT_THAT(loss[1].points, SizeIs(2));
  EXPECT_EQ(loss[2].name, "kd");
  const std::string svg = RenderPlot(loss, {}, {.name = "loss"});
  const size_t path = svg.find(" d=\"");
  const std::string d = svg.substr(path, svg.find('"', path + 4) - path);
  EXPECT_EQ(std::count(d.begin(), d.end(), 'M'), 2) << "a new line for the second stage: " << d;
  EXPECT_EQ(std::count(d.begin(), d.end(), 'L'), 1) << d;
}

TEST_F(ReportTest, ScoresComeFromReportsAndStages) {
  v1::Job job = SucceededJob();
  v1::GetHistoryResponse history;
  SetScore({{"top1", 0.4}}, AddPoint(&history, 1, 100, 400, 1)->mutable_score());
  SetScore({{"top1", 0.4}}, AddPoint(&history, 1, 200, 500, 1)->mutable_score());  // the same evaluation, told again
  const std::vector<PlotSeries> series = ScoreSeries(job, history);
  ASSERT_THAT(series, SizeIs(2));
  EXPECT_EQ(series[0].points[0].x, 400);
  EXPECT_EQ(series[0].points[0].y, 40);
  EXPECT_EQ(series[0].points.back().x, 1550) << "the end of the last stage";
  EXPECT_NEAR(series[0].points.back().y, job.stages_done(2).score().metrics(0).value() * 100, 1e-9);
  EXPECT_EQ(series[0].name, "student top-1");
  EXPECT_EQ(series[1].name, "teacher top-1");
}

TEST_F(ReportTest, EveryMetricHasACurveOfItsOwn) {
  v1::Job job = SucceededJob();
  SetScore({{"top1", 0.9375}, {"top5", 0.7}}, job.mutable_artifacts()->mutable_teacher_score());
  v1::GetHistoryResponse history;
  v1::Progress* const point = AddPoint(&history, 1, 100, 400, 1);
  SetScore({{"top1", 0.4}, {"top5", 0.25}}, point->mutable_score());
  const std::vector<PlotSeries> series = ScoreSeries(job, history);
  ASSERT_THAT(series, SizeIs(4));
  EXPECT_EQ(series[2].name, "student top-5");
  ASSERT_THAT(series[2].points, SizeIs(1));
  EXPECT_EQ(series[2].points[0].y, 25);
  EXPECT_EQ(series[3].name, "teacher top-5");
}

TEST_F(ReportTest, ClassesHaveATableAMatrixAndTheirCommonestMistakes) {
  v1::Job job = SucceededJob();
  EXPECT_THAT(Render(Sample(job)), Not(HasSubstr("Confusion matrix")));
  v1::ClassResults* student = job.mutable_artifacts()->mutable_student_classes();
  // Labels 0: 8 right, 2 taken for 1; 1: 4 of 5 right, 1 beyond the classes.
  for (const uint64_t n : {10, 5}) student->add_labelled(n);
  for (const uint64_t n : {8, 6}) student->add_answered(n);
  for (const uint64_t n : {8, 4}) student->add_right(n);
  for (const uint64_t n : {8, 2, 0, 4}) student->add_confusion(n);
  *job.mutable_artifacts()->mutable_teacher_classes() = *student;
  const std::string html = Render(Sample(job));
  EXPECT_EQ(Check(html), "svg 6 table 10\n");
  EXPECT_THAT(html, AllOf(HasSubstr("Confusion matrix"), HasSubstr("Teacher&#39;s recall")));
  // Class 1: 5 labelled, recall 4 of 5, precision 4 of 6, IoU 4 of 7.
  EXPECT_THAT(html, HasSubstr("<td class=\"r\">5</td><td class=\"r\">80.00%</td><td class=\"r\">66.67%</td><td "
                              "class=\"r\">57.14%</td>"));
  // 0 taken for 1 twice: a fifth of the label.
  EXPECT_THAT(html, HasSubstr("<td class=\"r\">0</td><td class=\"r\">1</td><td class=\"r\">2</td><td "
                              "class=\"r\">20.00%</td>"));
  // Without the matrix, the table alone; of many classes, the mistakes alone.
  job.mutable_artifacts()->mutable_student_classes()->clear_confusion();
  EXPECT_EQ(Check(Render(Sample(job))), "svg 6 table 8\n");
}

TEST_F(ReportTest, GroupsAreReadFromTheTypesOfEvents) {
  const std::vector<RankGroup> groups =
      GroupsOf({MakeEvent(1, "coordinator", "x", v1::EVENT_TYPE_GROUP_FORMED, 1),
                MakeEvent(2, "coordinator", "generation 7: only a text"), MakeEvent(3, "s0", "group lost: only a text"),
                MakeEvent(4, "coordinator", "x", v1::EVENT_TYPE_GROUP_LOST, 1),
                MakeEvent(5, "coordinator", "x", v1::EVENT_TYPE_GROUP_FORMED, 2)});
  ASSERT_THAT(groups, SizeIs(2));
  EXPECT_EQ(groups[0].formed, 1);
  EXPECT_EQ(groups[0].lost, 4);
  EXPECT_EQ(groups[1].generation, 2u);
  EXPECT_FALSE(groups[1].lost.has_value());
  EXPECT_TRUE(GroupsOf({MakeEvent(1, "coordinator", "x", v1::EVENT_TYPE_GROUP_LOST, 1)}).empty());
}

TEST_F(ReportTest, FileNamesComeFromPlainIdsOnly) {
  v1::Job job;
  job.set_id("fashion-1a2b");
  EXPECT_EQ(*ReportFileName(job), "fashion-1a2b-report.html");
  for (const char* id : {"", "../x", "a/b", ".hidden", "-o", "a b", "a\nb"}) {
    job.set_id(id);
    EXPECT_EQ(ReportFileName(job).status().code(), StatusCode::kFailedPrecondition) << id;
  }
}

TEST_F(ReportTest, FilesAreReplacedOnlyWhenAsked) {
  const std::string path = folder_ + "/r.html";
  EXPECT_TRUE(WriteReport(path, "one", false).ok());
  const Status status = WriteReport(path, "two", false);
  EXPECT_EQ(status.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr("--force")));
  EXPECT_EQ(Read(path), "one");
  EXPECT_TRUE(WriteReport(path, "three", true).ok());
  EXPECT_EQ(Read(path), "three");
  const Status nowhere = WriteReport(folder_ + "/none/r.html", "x", true);
  EXPECT_EQ(nowhere.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(nowhere.message()), HasSubstr("none/r.html"));
  EXPECT_EQ(WriteReport(folder_, "x", true).code(), StatusCode::kUnavailable) << "a folder";
  EXPECT_TRUE(WriteReport("/dev/null", "x", false).ok()) << "written to, not replaced";
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_EQ(WriteReport("/dev/full", "x", true).code(), StatusCode::kUnavailable);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 1u) << "no temporary files stay";
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0644);
}

}  // namespace
}  // namespace distill::cli
