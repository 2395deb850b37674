#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <thread>

#include "distill/v1/job.grpc.pb.h"
#include "tests/coordinator/services/service_fixture.h"

namespace distill {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class JobServiceTest : public ::testing::Test {
 protected:
  JobServiceTest() : channel_(coordinator_.Channel()), stub_(v1::JobService::NewStub(channel_)) {}

  grpc::Status Submit(const std::string& yaml, v1::SubmitJobResponse* response, const std::string& request_id = "r1",
                      bool dry_run = false) {
    v1::SubmitJobRequest request;
    request.set_request_id(request_id);
    request.set_yaml(yaml);
    request.set_file_name("my.yaml");
    request.set_dry_run(dry_run);
    grpc::ClientContext context;
    return stub_->SubmitJob(&context, request, response);
  }
  std::string SubmitScratch() {
    v1::SubmitJobResponse response;
    const std::string yaml = With(With(kPresetJob, "preset: sskd", "preset: scratch"), "teacher: fashion\n", "");
    const grpc::Status status = Submit(yaml, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job_id();
  }
  v1::Job Get(const std::string& job) {
    v1::GetJobRequest request;
    request.set_job(job);
    v1::GetJobResponse response;
    grpc::ClientContext context;
    const grpc::Status status = stub_->GetJob(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job();
  }
  void Cancel(const std::string& job) {
    v1::CancelJobRequest request;
    request.set_job(job);
    request.set_reason("test");
    v1::CancelJobResponse response;
    grpc::ClientContext context;
    const grpc::Status status = stub_->CancelJob(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.job().state(), v1::JOB_STATE_CANCELLED);
  }

  TestCoordinator coordinator_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::JobService::Stub> stub_;
};

TEST_F(JobServiceTest, SubmitsShowsListsAndCancels) {
  const std::string id = SubmitScratch();
  EXPECT_THAT(id, StartsWith("preset-job-"));
  v1::Job job = Get("preset-job");
  EXPECT_EQ(job.id(), id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  EXPECT_THAT(job.reason(), StartsWith("waiting for 2 students"));
  EXPECT_EQ(job.plan().stages(0).losses(0).type(), "cross_entropy");
  v1::ListJobsResponse list;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->ListJobs(&context, {}, &list).ok());
  ASSERT_EQ(list.jobs_size(), 1);
  Cancel(id);
}

TEST_F(JobServiceTest, ErrorsCarryTheirCodes) {
  v1::SubmitJobResponse response;
  EXPECT_EQ(Submit(kExplicitJob, &response, "").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::GetJobRequest request;
  request.set_job("nobody");
  v1::GetJobResponse unused;
  grpc::ClientContext context;
  EXPECT_EQ(stub_->GetJob(&context, request, &unused).error_code(), grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext watch_context;
  v1::WatchJobRequest watch;
  watch.set_job("nobody");
  auto reader = stub_->WatchJob(&watch_context, watch);
  v1::JobUpdate update;
  EXPECT_FALSE(reader->Read(&update));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(JobServiceTest, ProblemsOfAFileAreAnAnswerWithPlaces) {
  v1::SubmitJobResponse response;
  ASSERT_TRUE(Submit("name: [", &response).ok());
  ASSERT_EQ(response.problems_size(), 1);
  EXPECT_EQ(response.problems(0).line(), 1u);
  EXPECT_FALSE(response.problems(0).of_fleet());
  EXPECT_EQ(response.job_id(), "");
  EXPECT_FALSE(response.has_plan());
  ASSERT_TRUE(Submit(kExplicitJob, &response).ok());
  ASSERT_EQ(response.problems_size(), 1);
  EXPECT_TRUE(response.problems(0).of_fleet());
  EXPECT_EQ(response.problems(0).line(), 6u);
  EXPECT_EQ(response.problems(0).column(), 10u);
  EXPECT_THAT(response.problems(0).text(), HasSubstr("distill-teacher --model fashion=FILE"));
}

// More than fits into a call's status, which HTTP/2 carries in headers of at most 8 KiB.
TEST_F(JobServiceTest, AThousandMistakesArriveWhole) {
  for (const int count : {100, 1000}) {
    std::string yaml = kExplicitJob;
    for (int i = 0; i < count; ++i) {
      yaml += "a-long-key-that-no-job-file-has-and-that-is-therefore-refused-" + std::to_string(i) + ": 1\n";
    }
    v1::SubmitJobResponse response;
    const grpc::Status status = Submit(yaml, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    int unknown = 0;
    for (const v1::JobFileProblem& problem : response.problems()) unknown += problem.text().starts_with("unknown key");
    EXPECT_EQ(unknown, count);
  }
}

TEST_F(JobServiceTest, TheFileAndItsOverridesAreKept) {
  v1::SubmitJobRequest submit;
  submit.set_request_id("r1");
  submit.set_yaml(With(With(kPresetJob, "preset: sskd", "preset: scratch"), "teacher: fashion\n", ""));
  submit.set_file_name("my.yaml");
  submit.add_overrides("seed=3");
  submit.add_overrides("name=other");
  v1::SubmitJobResponse submitted;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->SubmitJob(&context, submit, &submitted).ok());
  v1::GetJobFileRequest request;
  request.set_job("other");
  v1::GetJobFileResponse file;
  grpc::ClientContext file_context;
  ASSERT_TRUE(stub_->GetJobFile(&file_context, request, &file).ok());
  EXPECT_EQ(file.job_id(), submitted.job_id());
  EXPECT_EQ(file.yaml(), submit.yaml());
  EXPECT_EQ(file.file_name(), "my.yaml");
  EXPECT_THAT(file.overrides(), ::testing::ElementsAre("seed=3", "name=other"));
  EXPECT_THAT(Get("other").overrides(), ::testing::ElementsAre("seed=3", "name=other"));
  EXPECT_EQ(Get("other").plan().seed(), 3u);
}

TEST_F(JobServiceTest, ListsAtMostAThousandOfTheStatesAskedFor) {
  const std::string id = SubmitScratch();
  const auto list = [&](uint32_t limit, std::vector<v1::JobState> states, v1::ListJobsResponse* response) {
    v1::ListJobsRequest request;
    request.set_limit(limit);
    for (const v1::JobState state : states) request.add_states(state);
    grpc::ClientContext context;
    return stub_->ListJobs(&context, request, response);
  };
  v1::ListJobsResponse jobs;
  ASSERT_TRUE(list(1000, {v1::JOB_STATE_QUEUED}, &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 1);
  ASSERT_TRUE(list(1000, {v1::JOB_STATE_RUNNING, v1::JOB_STATE_FAILED}, &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 0);
  EXPECT_EQ(list(1001, {}, &jobs).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(JobServiceTest, WatchSendsEachChangeUntilTheEnd) {
  const std::string id = SubmitScratch();
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job(id);
  auto reader = stub_->WatchJob(&context, request);
  v1::JobUpdate update;
  ASSERT_TRUE(reader->Read(&update));
  EXPECT_EQ(update.job().state(), v1::JOB_STATE_QUEUED);
  Cancel(id);
  std::vector<v1::JobState> states;
  while (reader->Read(&update)) states.push_back(update.job().state());
  ASSERT_FALSE(states.empty());
  EXPECT_EQ(states.back(), v1::JOB_STATE_CANCELLED);
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(JobServiceTest, WatchingAnEndedJobGivesItOnce) {
  const std::string id = SubmitScratch();
  Cancel(id);
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job(id);
  auto reader = stub_->WatchJob(&context, request);
  v1::JobUpdate update;
  ASSERT_TRUE(reader->Read(&update));
  EXPECT_EQ(update.job().state(), v1::JOB_STATE_CANCELLED);
  EXPECT_FALSE(reader->Read(&update));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(JobServiceTest, EventsAreReplayedAndFollowed) {
  const std::string id = SubmitScratch();
  const auto read = [&](bool follow, uint64_t after) {
    grpc::ClientContext context;
    v1::StreamEventsRequest request;
    request.set_job(id);
    request.set_follow(follow);
    request.set_after(after);
    auto reader = stub_->StreamEvents(&context, request);
    std::vector<std::string> texts;
    v1::JobEvent event;
    while (reader->Read(&event)) texts.push_back(event.text());
    EXPECT_TRUE(reader->Finish().ok());
    return texts;
  };
  const std::vector<std::string> first = read(false, 0);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_THAT(first[0], StartsWith("submitted"));
  EXPECT_TRUE(read(false, 1).empty());
  std::vector<std::string> followed;
  std::thread follower([&] { followed = read(true, 1); });
  TestCoordinator::Await([&] { return coordinator_.coordinator->feed().watchers() == 1; }, "the follower subscribed");
  Cancel(id);
  follower.join();
  ASSERT_EQ(followed.size(), 2u);
  EXPECT_EQ(followed[0], "cancel requested: test");
  EXPECT_EQ(followed[1], "cancelled by a user: test");
}

TEST_F(JobServiceTest, ManyWatchersThatGoAwayLeaveNothingBehind) {
  const std::string id = SubmitScratch();
  {
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::JobUpdate>>> readers;
    v1::WatchJobRequest request;
    request.set_job(id);
    for (int i = 0; i < 200; ++i) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      readers.push_back(stub_->WatchJob(contexts.back().get(), request));
      v1::JobUpdate update;
      ASSERT_TRUE(readers.back()->Read(&update));
    }
    EXPECT_EQ(coordinator_.coordinator->feed().watchers(), 200u);
    EXPECT_EQ(Get(id).id(), id) << "waiting streams must not keep others from being served";
    for (auto& context : contexts) context->TryCancel();
    for (auto& reader : readers) EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  TestCoordinator::Await([&] { return coordinator_.coordinator->feed().watchers() == 0; }, "all watchers are gone");
}

TEST_F(JobServiceTest, StoppingTheServerEndsOpenStreams) {
  const std::string id = SubmitScratch();
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_job(id);
  auto reader = stub_->WatchJob(&context, request);
  v1::JobUpdate update;
  ASSERT_TRUE(reader->Read(&update));
  coordinator_.server->Stop(std::chrono::milliseconds(1));
  EXPECT_FALSE(reader->Read(&update));
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(JobServiceTest, HostileMessagesGetErrorsAndTheServerGoesOn) {
  v1::SubmitJobResponse response;
  ASSERT_TRUE(Submit(std::string((1 << 20) + 1, ' '), &response).ok());
  EXPECT_EQ(response.problems_size(), 1);
  ASSERT_TRUE(Submit(std::string(10000, '['), &response).ok());
  EXPECT_EQ(response.problems_size(), 1);
  EXPECT_EQ(Submit(std::string(65 << 20, ' '), &response).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  grpc::GenericStub generic(channel_);
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff\xff"), std::string("\x12\x7fshort"), std::string("\x12\x02\xff\xfe")}) {
    grpc::Slice slice(bytes);
    grpc::ByteBuffer request(&slice, 1), answer;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    auto call = generic.PrepareUnaryCall(&context, "/distill.v1.JobService/SubmitJob", request, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_FALSE(status.ok());
  }
  EXPECT_FALSE(SubmitScratch().empty());
}

TEST_F(JobServiceTest, FleetTapsAndHistory) {
  coordinator_.RegisterTeacher();
  v1::GetFleetResponse fleet;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetFleet(&context, {}, &fleet).ok());
  ASSERT_EQ(fleet.workers_size(), 1);
  EXPECT_EQ(fleet.workers(0).kind(), "teacher");
  EXPECT_EQ(fleet.workers(0).models(0).spec().arch(), "cifar_resnet20");
  EXPECT_EQ(fleet.coordinator_version(), "test");
  EXPECT_EQ(fleet.coordinator_epoch(), 1u);
  v1::ListTapsRequest taps_request;
  taps_request.set_model("fashion");
  v1::ListTapsResponse taps;
  grpc::ClientContext taps_context;
  ASSERT_TRUE(stub_->ListTaps(&taps_context, taps_request, &taps).ok());
  EXPECT_GT(taps.taps_size(), 20);
  v1::GetHistoryRequest history_request;
  history_request.set_job(SubmitScratch());
  v1::GetHistoryResponse history;
  grpc::ClientContext history_context;
  EXPECT_TRUE(stub_->GetHistory(&history_context, history_request, &history).ok());
  EXPECT_EQ(history.points_size(), 0);
}

}  // namespace
}  // namespace distill
