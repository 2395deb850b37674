// What every JobStore promises, for each implementation.
#include "coordinator/store/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/coordinator/store/store_fixture.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct StoreParam {
  const char* name;
  bool on_disk;
};
void PrintTo(const StoreParam& param, std::ostream* out) { *out << param.name; }

class JobStoreSuite : public testing::TestWithParam<StoreParam> {
 protected:
  void SetUp() override {
    StatusOr<std::unique_ptr<JobStore>> store =
        OpenSqliteJobStore(GetParam().on_disk ? dir_.File("jobs.db") : ":memory:");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  std::vector<std::string> EventTexts(const std::string& job, uint64_t after = 0, size_t limit = 1000) {
    std::vector<std::string> texts;
    for (const std::vector<EventRecord> events = store_->Events(job, after, limit).value();
         const EventRecord& event : events) {
      texts.push_back(event.text);
    }
    return texts;
  }
  void Insert(const std::string& id, const std::string& name = "job") {
    const Status status = store_->Insert(MakeJob(id, name), "request-" + id, "sha-" + id, {MakeEvent("submitted")});
    ASSERT_TRUE(status.ok()) << status;
  }
  Status Apply(JobChange change) { return store_->Apply({std::move(change)}); }

  TempDir dir_;
  std::unique_ptr<JobStore> store_;
};
INSTANTIATE_TEST_SUITE_P(All, JobStoreSuite, testing::Values(StoreParam{"Disk", true}, StoreParam{"Memory", false}),
                         [](const auto& info) { return info.param.name; });

TEST_P(JobStoreSuite, KeepsAJobAsItWasInserted) {
  Insert("job-1");
  const JobRecord want = MakeJob("job-1");
  const JobRecord got = store_->Get("job-1").value();
  EXPECT_EQ(got.plan, want.plan);
  EXPECT_EQ(store_->Yaml("job-1").value(), want.yaml);
  EXPECT_EQ(store_->Yaml("job-2").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(got.overrides, want.overrides);
  EXPECT_EQ(got.file_name, want.file_name);
  EXPECT_EQ(got.submitted_time, want.submitted_time);
  EXPECT_EQ(got.status, want.status);
  EXPECT_FALSE(got.has_progress);
  EXPECT_FALSE(got.has_artifacts);
  EXPECT_THAT(got.stages, IsEmpty());
  EXPECT_THAT(EventTexts("job-1"), ElementsAre("submitted"));
}

// "cancel NAME" means the job that runs, also when a later one of that name has ended.
TEST_P(JobStoreSuite, ANameMeansTheJobThatHasNotEnded) {
  const auto end = [&](const std::string& id) {
    JobChange change;
    change.job_id = id;
    change.status = JobStatus{.state = JobState::kFailed, .reason = "broken"};
    ASSERT_TRUE(Apply(change).ok());
  };
  for (const char* id : {"a", "b", "c"}) Insert(id, "same");
  StatusOr<JobRecord> several = store_->Get("same");
  EXPECT_EQ(several.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(several.status().message()),
              HasSubstr("3 jobs named 'same' have not ended; name one by its id: c, b, a"));
  end("c");
  EXPECT_EQ(store_->Get("same").status().code(), StatusCode::kInvalidArgument);
  end("b");
  EXPECT_EQ(store_->Get("same")->id, "a");
  end("a");
  EXPECT_EQ(store_->Get("same")->id, "c") << "the newest, now that all have ended";
  EXPECT_EQ(store_->Get("b")->id, "b");
}

TEST_P(JobStoreSuite, FindsByIdFirstThenByName) {
  Insert("a", "x");
  Insert("b", "x");
  Insert("x", "y");  // an id that is another job's name
  EXPECT_EQ(store_->Get("x")->id, "x");
  EXPECT_EQ(store_->Get("y")->id, "x");
  EXPECT_EQ(store_->Get("nobody").status().code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(store_->Get("nobody").status().message()), HasSubstr("'nobody'"));
}

TEST_P(JobStoreSuite, RemembersRequests) {
  Insert("job-1");
  EXPECT_FALSE(store_->FindRequest("other")->has_value());
  EXPECT_EQ((*store_->FindRequest("request-job-1"))->job_id, "job-1");
  EXPECT_EQ((*store_->FindRequest("request-job-1"))->content_sha256, "sha-job-1");
  EXPECT_EQ(store_->Insert(MakeJob("job-2"), "request-job-1", "sha", {}).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->Get("job-2").status().code(), StatusCode::kNotFound) << "half of a refused job was kept";
  EXPECT_EQ(store_->Insert(MakeJob("job-1"), "request-3", "sha", {}).code(), StatusCode::kAlreadyExists);
  EXPECT_FALSE(store_->FindRequest("request-3")->has_value());
}

TEST_P(JobStoreSuite, ListsNewestFirstAndActiveOldestFirst) {
  for (const char* id : {"a", "b", "c"}) Insert(id);
  JobChange ended;
  ended.job_id = "b";
  ended.status = JobStatus{.state = JobState::kFailed, .reason = "broken"};
  ASSERT_TRUE(Apply(ended).ok());
  std::vector<std::string> ids;
  for (const std::vector<JobRecord> jobs = store_->List(2).value(); const JobRecord& job : jobs) ids.push_back(job.id);
  EXPECT_THAT(ids, ElementsAre("c", "b"));
  ids.clear();
  for (const auto& [limit, states, expected] :
       std::vector<std::tuple<size_t, std::vector<JobState>, std::vector<std::string>>>{
           {9, {JobState::kQueued}, {"c", "a"}},
           {1, {JobState::kQueued}, {"c"}},
           {9, {JobState::kFailed, JobState::kQueued}, {"c", "b", "a"}},
           {9, {JobState::kRunning}, {}}}) {
    for (const std::vector<JobRecord> jobs = store_->List(limit, states).value(); const JobRecord& job : jobs) {
      ids.push_back(job.id);
    }
    EXPECT_EQ(ids, expected);
    ids.clear();
  }
  for (const std::vector<JobRecord> jobs = store_->Active().value(); const JobRecord& job : jobs) ids.push_back(job.id);
  EXPECT_THAT(ids, ElementsAre("a", "c"));
}

TEST_P(JobStoreSuite, AppliesAllPartsOfAChange) {
  Insert("job");
  JobChange change;
  change.job_id = "job";
  JobStatus status;
  status.state = JobState::kRunning;
  status.reason = "stage 1";
  status.wait = JobWait::kTeacher;
  status.generation = 3;
  status.restarts = 2;
  status.fruitless = 1;
  status.best_step = 70;
  status.best_stage = 1;
  status.set_aside = {{"student-9", "inc-z", "no data there"}};
  status.ranks = {{"student-1", "inc-b"}, {"student-0", "inc-a"}};
  status.cancel_requested = true;
  status.cancel_reason = "why not";
  status.started_time = 7;
  status.finished_time = 9;
  change.status = status;
  JobProgress progress;
  progress.stage = 1;
  progress.step = 20;
  progress.total_step = 120;
  progress.loss = 0.5;
  progress.terms = {{"kd", 1.5}};
  progress.step_seconds = {{"forward", 0.01}};
  progress.score.metrics = {{"mean_iou", 0.7}, {"pixel_accuracy", 0.9}};
  progress.phase = "training";
  change.progress = {progress};
  change.stage = StageRecord{{.stage = 0,
                              .checkpoint = "/w/c",
                              .digest = "dd",
                              .score = {.metrics = {{"mean_iou", 0.6}}, .by_class = {}},
                              .loss = 1,
                              .seconds = 2},
                             77};
  const ClassResults classes{.labelled = {3, 2}, .answered = {4, 1}, .right = {3, 1}, .confusion = {3, 0, 1, 1}};
  change.artifacts = JobArtifacts{.safetensors = "s.safetensors",
                                  .safetensors_bytes = 5,
                                  .student_score = {.metrics = {{"mean_iou", 0.71}}, .by_class = classes}};
  change.events = {MakeEvent("one"), MakeEvent("two")};
  ASSERT_TRUE(Apply(change).ok());
  const JobRecord job = store_->Get("job").value();
  EXPECT_EQ(job.status, status);
  ASSERT_TRUE(job.has_progress);
  EXPECT_EQ(job.progress.total_step, 120u);
  EXPECT_EQ(job.progress.terms[0].name, "kd");
  EXPECT_EQ(job.progress.phase, "training");
  EXPECT_EQ(job.progress.score, progress.score);
  EXPECT_FALSE(job.progress.teacher_score.measured());
  ASSERT_EQ(job.stages.size(), 1u);
  EXPECT_EQ(job.stages[0].result.digest, "dd");
  EXPECT_EQ(job.stages[0].committed_time, 77);
  ASSERT_NE(job.stages[0].result.score.Find("mean_iou"), nullptr);
  EXPECT_EQ(*job.stages[0].result.score.Find("mean_iou"), 0.6);
  ASSERT_TRUE(job.has_artifacts);
  EXPECT_EQ(job.artifacts.safetensors, "s.safetensors");
  EXPECT_EQ(job.artifacts.student_score, change.artifacts->student_score);
  EXPECT_FALSE(job.artifacts.teacher_score.measured());
  const JobRecord listed = store_->List(1)->at(0);
  EXPECT_EQ(listed.artifacts.student_score.metrics, change.artifacts->student_score.metrics);
  EXPECT_EQ(listed.artifacts.student_score.by_class, ClassResults()) << "lists would grow too large";
  EXPECT_THAT(EventTexts("job"), ElementsAre("submitted", "one", "two"));
  EXPECT_THAT(EventTexts("job", 1), ElementsAre("one", "two"));
  EXPECT_THAT(EventTexts("job", 1, 1), ElementsAre("one"));
  change = {.job_id = "job", .drop_stages = 0};
  ASSERT_TRUE(Apply(change).ok());
  EXPECT_THAT(store_->Get("job")->stages, IsEmpty());
}

TEST_P(JobStoreSuite, KeepsWhatAnEventIsAbout) {
  EventRecord lost = MakeEvent("gone");
  lost.type = EventType::kGroupLost;
  lost.generation = 3;
  lost.level = EventLevel::kError;
  Insert("job");
  ASSERT_TRUE(Apply(EventsOf("job", {lost})).ok());
  const EventRecord got = store_->Events("job", 1, 10)->at(0);
  EXPECT_EQ(got.type, EventType::kGroupLost);
  EXPECT_EQ(got.generation, 3u);
  EXPECT_EQ(got.level, EventLevel::kError);
}

TEST_P(JobStoreSuite, AChangeIsAllOrNothing) {
  Insert("job");
  JobChange good = EventsOf("job", {MakeEvent("kept?")});
  good.status = JobStatus{.state = JobState::kRunning, .reason = "kept?"};
  const Status status = store_->Apply({good, EventsOf("no-such-job", {MakeEvent("x")})});
  EXPECT_EQ(status.code(), StatusCode::kNotFound) << status;
  EXPECT_EQ(store_->Get("job")->status.reason, "submitted");
  EXPECT_THAT(EventTexts("job"), ElementsAre("submitted"));
}

TEST_P(JobStoreSuite, ACommittedStageStaysAsItIs) {
  Insert("job");
  for (const char* digest : {"first", "second"}) {
    JobChange change;
    change.job_id = "job";
    change.stage = StageRecord{{.stage = 0, .digest = digest}, 1};
    ASSERT_TRUE(Apply(change).ok());
  }
  EXPECT_EQ(store_->Get("job")->stages[0].result.digest, "first");
}

TEST_P(JobStoreSuite, NumbersEventsPerJobAndStoresWorkersEventsOnce) {
  Insert("a");
  Insert("b");
  const auto event = [](uint64_t number, const std::string& incarnation) {
    EventRecord e = MakeEvent(incarnation + std::to_string(number));
    e.source = "student-0";
    e.source_incarnation = incarnation;
    e.source_sequence = number;
    return e;
  };
  ASSERT_TRUE(Apply(EventsOf("a", {event(1, "x"), event(2, "x")})).ok());
  ASSERT_TRUE(
      Apply(EventsOf("a", {event(1, "x"), event(2, "x"), event(3, "x")})).ok());  // the answer was lost; sent again
  ASSERT_TRUE(Apply(EventsOf("a", {event(1, "y")})).ok());                        // the worker was restarted
  ASSERT_TRUE(Apply(EventsOf("b", {event(1, "x")})).ok());
  EXPECT_THAT(EventTexts("a"), ElementsAre("submitted", "x1", "x2", "x3", "y1"));
  EXPECT_THAT(EventTexts("b"), ElementsAre("submitted", "x1"));
  uint64_t want = 1;
  for (const std::vector<EventRecord> events = store_->Events("a", 0, 100).value(); const EventRecord& e : events) {
    EXPECT_EQ(e.sequence, want++);
  }
}

TEST_P(JobStoreSuite, KeepsTheNewestEvents) {
  Insert("job");
  for (int chunk = 0; chunk < 11; ++chunk) {
    std::vector<EventRecord> events;
    for (int i = 0; i < 1000; ++i) events.push_back(MakeEvent("e"));
    ASSERT_TRUE(Apply(EventsOf("job", std::move(events))).ok());
  }
  const std::vector<EventRecord> events = store_->Events("job", 0, 100000).value();
  EXPECT_EQ(events.size(), JobStore::kMaxEvents);
  EXPECT_EQ(events.back().sequence, 11001u);
}

TEST_P(JobStoreSuite, ThinsACurveEvenly) {
  Insert("job");
  const uint64_t reports = 3 * JobStore::kMaxProgressPoints;
  std::vector<JobChange> changes;
  for (uint64_t i = 0; i < reports; ++i) {
    JobChange change;
    change.job_id = "job";
    change.progress = {JobProgress{.total_step = i}};
    changes.push_back(std::move(change));
  }
  ASSERT_TRUE(store_->Apply(changes).ok());
  const std::vector<JobProgress> points = store_->History("job").value();
  EXPECT_LE(points.size(), JobStore::kMaxProgressPoints);
  EXPECT_GE(points.size(), JobStore::kMaxProgressPoints / 2);
  ASSERT_GE(points.size(), 2u);
  EXPECT_EQ(points[0].total_step, 0u);
  const uint64_t stride = points[1].total_step;
  for (size_t i = 0; i < points.size(); ++i) ASSERT_EQ(points[i].total_step, i * stride) << "point " << i;
  EXPECT_GE(points.back().total_step + stride, reports - 1);
  EXPECT_EQ(store_->Get("job")->progress.total_step, reports - 1);  // the newest is kept beside the curve
}

TEST_P(JobStoreSuite, ACurveIsReadInPages) {
  Insert("job");
  for (uint64_t i = 0; i < 5; ++i) {
    JobChange change;
    change.job_id = "job";
    change.progress = {JobProgress{.total_step = 10 * i}};
    ASSERT_TRUE(Apply(std::move(change)).ok());
  }
  const auto numbers = [&](uint64_t from, size_t limit) {
    std::vector<uint64_t> out;
    for (const std::vector<CurvePoint> points = store_->Curve("job", from, limit).value();
         const CurvePoint& point : points) {
      EXPECT_EQ(point.progress.total_step, 10 * point.number);
      out.push_back(point.number);
    }
    return out;
  };
  EXPECT_EQ(numbers(0, 100), (std::vector<uint64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(numbers(1, 2), (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(numbers(4, 100), std::vector<uint64_t>{4});
  EXPECT_TRUE(numbers(5, 100).empty());
  EXPECT_TRUE(numbers(UINT64_MAX, 100).empty());
  EXPECT_TRUE(store_->Curve("unknown", 0, 100)->empty());
}

TEST_P(JobStoreSuite, HoldsWhateverBytesUsersSend) {
  JobRecord job = MakeJob("job");
  job.yaml = std::string("a\0b\xff'; DROP TABLE jobs; --", 27);
  job.status.reason = "it's \"quoted\"; ?";
  ASSERT_TRUE(store_->Insert(job, "'; --", "x", {}).ok());
  EXPECT_EQ(store_->Yaml("job").value(), job.yaml);
  EXPECT_EQ(store_->Get("job")->status.reason, job.status.reason);
  EXPECT_EQ((*store_->FindRequest("'; --"))->job_id, "job");
}

TEST_P(JobStoreSuite, ServesThreadsAtOnce) {
  Insert("job");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_TRUE(Apply(EventsOf("job", {MakeEvent("e")})).ok());
        EXPECT_TRUE(store_->Get("job").ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(EventTexts("job").size(), 81u);
}

}  // namespace
}  // namespace distill
