// What programs ask of CUDA, on a machine with a GPU and on one without.
#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "common/cuda/cuda_environment.h"
#include "tests/common/cuda/gpu_test.h"

namespace distill {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(CudaRuntimeTest, WithoutADeviceTheAnswerSaysWhyAndStaysTheSame) {
  const Status status = LoadCudaRuntime();
  if (status.ok()) {
    EXPECT_FALSE(CudaDeviceName(0).empty());
    EXPECT_THAT(CudaDeviceId(0), StartsWith("GPU-"));
    return;
  }
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("CUDA"), HasSubstr("use device cpu")));
  if (std::getenv("DISTILL_TEST_STUB_DRIVER") != nullptr) {  // it is there and knows no GPU
    EXPECT_THAT(std::string(status.message()), HasSubstr("no NVIDIA GPU or driver is visible"));
  }
  EXPECT_EQ(CudaDeviceCount(), 0);
  EXPECT_EQ(LoadedCudaPlugin(), nullptr);
  EXPECT_EQ(LoadCudaRuntime(), status);
}

TEST(CudaRuntimeTest, DevicesAreChosenByName) {
  for (const char* good : {"auto", "cpu", "cuda", "cuda:0", "cuda:15"}) EXPECT_TRUE(IsDeviceChoice(good)) << good;
  for (const char* bad : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0x", "cuda:100", "CUDA:0", "cuda0"}) {
    EXPECT_FALSE(IsDeviceChoice(bad)) << bad;
    EXPECT_EQ(ChooseDevice(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(*ChooseDevice("cpu"), "cpu");
  EXPECT_EQ(DescribeDevice("cpu"), "cpu");
  const auto last = ChooseDevice("cuda:63");
  EXPECT_EQ(last.status().code(), StatusCode::kFailedPrecondition);
  if (LoadCudaRuntime().ok()) {
    EXPECT_EQ(*ChooseDevice("auto"), "cuda:0");
    EXPECT_EQ(*ChooseDevice("cuda"), "cuda:0");
    EXPECT_EQ(DescribeDevice("cuda:0"), "cuda:0 " + CudaDeviceName(0));
    EXPECT_THAT(std::string(last.status().message()), HasSubstr("CUDA_VISIBLE_DEVICES"));
  } else {
    EXPECT_EQ(*ChooseDevice("auto"), "cpu");
    EXPECT_EQ(ChooseDevice("cuda").status(), LoadCudaRuntime());
  }
}

TEST(CudaRuntimeTest, AnOldDriverIsToldFromNone) {
  EXPECT_TRUE(CheckDriverVersion(13000, 13000).ok());
  EXPECT_TRUE(CheckDriverVersion(13000, 13010).ok()) << "one major release runs all of its minor ones";
  EXPECT_TRUE(CheckDriverVersion(0, 13000).ok()) << "does not say";
  const Status status = CheckDriverVersion(12080, 13000);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("12.8"), HasSubstr("13.0"), HasSubstr("newer driver")));
}

TEST(CudaEnvironmentTest, WhatIsNotSetIsSetAndWhatIsSetStays) {
  const auto settings = CudaEnvironment();
  ASSERT_GE(settings.size(), 2u);
  ::setenv(settings[0].name, "by the operator", 1);
  ::unsetenv(settings[1].name);
  SetCudaEnvironment();
  EXPECT_STREQ(std::getenv(settings[0].name), "by the operator");
  EXPECT_STREQ(std::getenv(settings[1].name), settings[1].value);
  for (const EnvironmentSetting& setting : settings) {
    EXPECT_NE(std::getenv(setting.name), nullptr) << setting.name;
    EXPECT_STRNE(setting.reason, "") << setting.name;
  }
}

// A run that is to show that the GPU's code works must not pass because there was no GPU.
TEST(GpuTest, ARunThatMustHaveAGpuFailsWithoutOne) {
  if (LoadCudaRuntime().ok()) return;
  const char* before = std::getenv("DISTILL_REQUIRE_GPU");
  const std::string kept = before == nullptr ? "" : before;
  ::setenv("DISTILL_REQUIRE_GPU", "1", 1);
  EXPECT_FATAL_FAILURE(DISTILL_NEED_GPU(), "DISTILL_REQUIRE_GPU");
  ::setenv("DISTILL_REQUIRE_GPU", kept.c_str(), 1);
}

}  // namespace
}  // namespace distill
