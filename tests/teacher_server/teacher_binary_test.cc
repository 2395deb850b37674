// The real program, started as a process.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <thread>

#include "common/exit_codes.h"
#include "distill/v1/features.grpc.pb.h"
#include "tests/harness/process.h"
#include "tests/teacher_server/model_fixture.h"

namespace distill {
namespace {

using ::distill::testing::CommandResult;
using ::distill::testing::Process;
using ::distill::testing::ReadFileOrEmpty;
using ::distill::testing::RunCommand;
using ::distill::testing::TempDir;
using ::distill::testing::TestSpec;
using ::distill::testing::TestWeights;
using ::distill::testing::WriteFile;
using ::testing::HasSubstr;

constexpr char kProgram[] = DISTILL_BIN_DIR "/distill-teacher";
constexpr std::chrono::seconds kPatience(60);

class TeacherBinaryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    weights_ = dir_ / "m.safetensors";
    ASSERT_TRUE(WriteSafetensors(weights_, TestWeights(TestSpec(), 7)).ok());
  }
  // Starts the program and waits for its ready file.
  void StartTeacher(std::vector<std::string> flags) {
    const std::string ready = dir_ / "ready";
    std::vector<std::string> argv = {kProgram, "--ready-file", ready, "--device", "cpu", "--threads", "1"};
    argv.insert(argv.end(), flags.begin(), flags.end());
    process_ = std::make_unique<Process>(argv, Process::Options{.log = dir_ / "log"});
    while (!std::filesystem::exists(ready)) {
      ASSERT_TRUE(process_->Running()) << ReadFileOrEmpty(dir_ / "log");
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const std::string text = ReadFileOrEmpty(ready);
    const size_t begin = text.find("address=") + 8;
    address_ = text.substr(begin, text.find('\n', begin) - begin);
  }
  // Runs to its end with flags it must refuse.
  CommandResult Refused(std::vector<std::string> flags) {
    flags.insert(flags.begin(), {kProgram, "--http-listen", "off", "--device", "cpu"});
    return RunCommand(flags, kPatience);
  }

  TempDir dir_;
  std::string weights_;
  std::string address_;
  std::unique_ptr<Process> process_;
};

TEST_F(TeacherBinaryTest, ServesDrainsOnSigtermAndExitsWith143) {
  StartTeacher({"--model", "m=" + weights_, "--grace", "30"});
  auto stub = v1::FeatureService::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
  grpc::ClientContext list_context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(stub->ListModels(&list_context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "m");

  grpc::ClientContext context;
  auto stream = stub->StreamFeatures(&context);
  v1::FeatureRequest request;
  request.mutable_open()->set_model("m");
  request.mutable_open()->set_digest(models.models(0).digest());
  request.mutable_open()->set_credit_bytes(1 << 30);
  request.mutable_open()->add_taps()->mutable_encoding()->set_dtype(v1::WIRE_DTYPE_F32);
  ASSERT_TRUE(stream->Write(request));
  request.mutable_batch()->set_request_id(3);
  for (uint32_t axis : {2, 3, 16, 16}) request.mutable_batch()->add_shape(axis);
  request.set_payload(std::string(2 * 3 * 16 * 16, 'x'));
  ASSERT_TRUE(stream->Write(request));
  v1::FeatureResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.error(), "");
  EXPECT_EQ(response.request_id(), 3);
  EXPECT_EQ(response.payload().size(), 2 * 10 * 4);
  EXPECT_TRUE(response.last());

  process_->Signal(SIGTERM);
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(process_->Wait(kPatience), kExitTerminated) << ReadFileOrEmpty(dir_ / "log");
}

TEST_F(TeacherBinaryTest, AStreamThatWaitsForCreditIsCutOffAfterTheGrace) {
  std::filesystem::create_directory(dir_ / "models");
  std::filesystem::copy_file(weights_, dir_ / "models/other.safetensors");
  StartTeacher({"--models", dir_ / "models", "--grace", "0"});
  auto stub = v1::FeatureService::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto stream = stub->StreamFeatures(&context);
  v1::FeatureRequest request;
  request.mutable_open()->set_model("other");
  request.mutable_open()->set_credit_bytes(8);
  request.mutable_open()->add_taps()->mutable_encoding()->set_dtype(v1::WIRE_DTYPE_F32);
  ASSERT_TRUE(stream->Write(request));
  request.mutable_batch()->set_request_id(1);
  for (uint32_t axis : {1, 3, 16, 16}) request.mutable_batch()->add_shape(axis);
  request.set_payload(std::string(3 * 16 * 16, 'x'));
  ASSERT_TRUE(stream->Write(request));
  v1::FeatureResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.payload().size(), 8);
  process_->Signal(SIGINT);
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_FALSE(stream->Finish().ok());
  EXPECT_EQ(process_->Wait(kPatience), kExitInterrupted) << ReadFileOrEmpty(dir_ / "log");
}

// torch cannot be asked to stop: a program that computes for hours is being tried out when the signal comes.
TEST_F(TeacherBinaryTest, SigtermWhileModelsLoadEndsItAtOnce) {
  testing::WriteProgram(
      "def forward(self, x: Tensor) -> Tensor:\n    n = 0\n    while n < 1000000000000:\n        n += 1\n    return "
      "x\n",
      dir_ / "slow.pt");
  for (const auto& [signal, code] : {std::pair(SIGTERM, kExitTerminated), std::pair(SIGINT, kExitInterrupted)}) {
    const std::string log = dir_ / "loading.log";
    std::filesystem::remove(log);
    Process process({kProgram, "--http-listen", "off", "--device", "cpu", "--model", "slow=" + (dir_ / "slow.pt")},
                    Process::Options{.log = log});
    while (ReadFileOrEmpty(log).find("loading models") == std::string::npos) {
      ASSERT_TRUE(process.Running()) << ReadFileOrEmpty(log);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    process.Signal(signal);
    EXPECT_EQ(process.Wait(kPatience), code) << ReadFileOrEmpty(log);
    EXPECT_THAT(ReadFileOrEmpty(log), HasSubstr("while=\"loading models\""));
  }
}

TEST_F(TeacherBinaryTest, AFolderServesWhatItCanAndNamesTheRest) {
  std::filesystem::create_directory(dir_ / "models");
  std::filesystem::copy_file(weights_, dir_ / "models/good.safetensors");
  const std::string good = ReadFileOrEmpty(weights_);
  WriteFile(dir_ / "models/half.safetensors", good.substr(0, good.size() / 2));
  WriteFile(dir_ / "models/other.safetensors", good.substr(0, 100));
  WriteFile(dir_ / "models/pickle.safetensors", "\x80\x02}.");
  WriteFile(dir_ / "models/bare.pt", "PK");
  WriteFile(dir_ / "models/my model.safetensors", good);
  WriteFile(dir_ / "models/._good.safetensors", "litter");
  StartTeacher({"--models", dir_ / "models"});
  const std::string log = ReadFileOrEmpty(dir_ / "log");
  for (const char* name : {"half.safetensors", "other.safetensors", "pickle.safetensors", "bare.pt", "my model"}) {
    EXPECT_THAT(log, HasSubstr(name));
  }
  EXPECT_THAT(log, HasSubstr("a Python pickle"));
  EXPECT_EQ(log.find("._good"), std::string::npos);
  auto stub = v1::FeatureService::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(stub->ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "good");
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->Wait(kPatience), kExitTerminated);
  // None that can be served: as it was, and all are named.
  std::filesystem::remove(dir_ / "models/good.safetensors");
  const CommandResult none = Refused({"--models", dir_ / "models"});
  EXPECT_EQ(none.exit_code, kExitConfiguration) << none.err;
  EXPECT_THAT(none.err, HasSubstr("none of the 4 models can be served"));
}

TEST_F(TeacherBinaryTest, WrongInputEndsWith42AndTheReason) {
  const std::string good = ReadFileOrEmpty(weights_);
  WriteFile(dir_ / "short.safetensors", good.substr(0, good.size() / 2));
  SafetensorsFile other = TestWeights(TestSpec(), 7);
  other.metadata = SpecToMetadata(TestSpec("cifar_resnet14"));
  ASSERT_TRUE(WriteSafetensors(dir_ / "other.safetensors", other).ok());
  const struct {
    std::vector<std::string> flags;
    std::string text;
  } kCases[] = {
      {{}, "nothing to serve"},
      {{"--model", "m=" + (dir_ / "gone.safetensors")}, "gone.safetensors"},
      {{"--model", "m=" + (dir_ / "short.safetensors")}, "short.safetensors"},
      {{"--model", "m=" + (dir_ / "other.safetensors")}, "other.safetensors"},
      {{"--model", "m=" + weights_, "--model", "m=" + weights_}, "two models are named 'm'"},
      {{"--model", "m=" + weights_, "--listen", "nowhere"}, "nowhere"},
  };
  for (const auto& c : kCases) {
    const CommandResult result = Refused(c.flags);
    EXPECT_EQ(result.exit_code, kExitConfiguration) << c.text << "\n" << result.err;
    EXPECT_THAT(result.err, HasSubstr(c.text));
  }
  EXPECT_EQ(Refused({"--device", "tpu"}).exit_code, kExitUsage);
  EXPECT_EQ(Refused({"--modle", "x"}).exit_code, kExitUsage);
}

}  // namespace
}  // namespace distill
