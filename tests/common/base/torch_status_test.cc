#include "common/torch_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <new>
#include <optional>

#include "common/failure_kind.h"

namespace distill {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

Status StatusOfThrow(const std::function<void()>& throw_it) {
  try {
    throw_it();
  } catch (const std::exception& error) {
    return TorchStatus(error, "step 7");
  }
  return OkStatus();
}

struct Case {
  const char* name;
  std::function<void()> throw_it;
  StatusCode code;
  std::optional<FailureKind> kind;
  bool ends_process = false;
};

c10::SourceLocation Here() { return {__func__, __FILE__, static_cast<uint32_t>(__LINE__)}; }
void ThrowCuda(int32_t code, const char* text) { throw c10::AcceleratorError(Here(), code, text); }
void ThrowNccl(const std::string& text) { C10_THROW_ERROR(DistBackendError, text); }

const Case kCases[] = {
    {"DeviceMemory", [] { C10_THROW_ERROR(OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB."); },
     StatusCode::kResourceExhausted, FailureKind::kWorker},
    {"HostMemory", [] { throw std::bad_alloc(); }, StatusCode::kResourceExhausted, FailureKind::kWorker},
    {"CpuTensor", [] { torch::empty({int64_t{1} << 60}, torch::kUInt8); }, StatusCode::kResourceExhausted,
     FailureKind::kWorker},
    {"CudaMalloc", [] { ThrowCuda(2, "CUDA error: out of memory"); }, StatusCode::kResourceExhausted,
     FailureKind::kWorker},
    {"Cublas", [] { TORCH_CHECK(false, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"); },
     StatusCode::kResourceExhausted, FailureKind::kWorker},
    {"Cudnn", [] { TORCH_CHECK(false, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"); }, StatusCode::kResourceExhausted,
     FailureKind::kWorker},
    {"InvalidValue", [] { ThrowCuda(1, "CUDA error: invalid argument"); }, StatusCode::kInternal, FailureKind::kWorker},
    {"NoKernelImage", [] { ThrowCuda(209, "CUDA error: no kernel image is available"); }, StatusCode::kInternal,
     FailureKind::kWorker},
    {"IllegalAddress", [] { ThrowCuda(700, "CUDA error: an illegal memory access was encountered"); },
     StatusCode::kInternal, FailureKind::kWorker, true},
    {"LaunchFailure", [] { ThrowCuda(719, "CUDA error: unspecified launch failure"); }, StatusCode::kInternal,
     FailureKind::kWorker, true},
    {"Ecc", [] { ThrowCuda(214, "CUDA error: uncorrectable ECC error encountered"); }, StatusCode::kInternal,
     FailureKind::kWorker, true},
    {"Store", [] { C10_THROW_ERROR(DistStoreError, "away"); }, StatusCode::kAborted, FailureKind::kPassing},
    {"Network", [] { C10_THROW_ERROR(DistNetworkError, "reset by peer"); }, StatusCode::kAborted,
     FailureKind::kPassing},
    {"NcclRemote",
     [] {
       ThrowNccl(
           "NCCL error in: NCCLUtils.cpp:5\nncclRemoteError: A call failed possibly due to a "
           "network error or a remote process exiting prematurely.");
     },
     StatusCode::kAborted, FailureKind::kPassing},
    {"NcclTimeout", [] { ThrowNccl("[Rank 1] Watchdog caught collective operation timeout"); }, StatusCode::kAborted,
     FailureKind::kPassing},
    {"NcclUsage",
     [] {
       ThrowNccl(
           "NCCL error in: NCCLUtils.cpp:5\nncclInvalidUsage: This usually reflects invalid usage "
           "of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0");
     },
     StatusCode::kAborted, FailureKind::kWorker},
    {"NcclCuda", [] { ThrowNccl("NCCL error\nncclUnhandledCudaError: Call to CUDA function failed."); },
     StatusCode::kAborted, FailureKind::kWorker},
    {"Shapes", [] { torch::ones({2}) + torch::ones({3}); }, StatusCode::kInternal, FailureKind::kJob},
    // Words alone decide nothing where there are types.
    {"Words", [] { TORCH_CHECK(false, "the file NCCL.txt is damaged, CUDA error: 700"); }, StatusCode::kInternal,
     FailureKind::kJob},
    {"Std", [] { throw std::runtime_error("something else"); }, StatusCode::kInternal, std::nullopt},
};

class TorchStatusTest : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Types, TorchStatusTest, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(TorchStatusTest, TheTypeDecides) {
  const Status status = StatusOfThrow(GetParam().throw_it);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_EQ(KindOf(status), GetParam().kind) << status;
  EXPECT_EQ(EndsProcess(status), GetParam().ends_process) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 7"));
}

TEST(TorchMessageTest, MarksSurviveAnnotation) {
  const Status status = Annotate(StatusOfThrow([] { ThrowCuda(700, "lost"); }), "stage 'a'");
  EXPECT_EQ(KindOf(status), FailureKind::kWorker);
  EXPECT_TRUE(EndsProcess(status));
}

TEST(TorchMessageTest, OutOfMemoryIsNamedWithWhatWasAsked) {
  const Status status =
      StatusOfThrow([] { C10_THROW_ERROR(OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB."); });
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("out of memory"), HasSubstr("20.00 GiB")));
}

// NCCL's reason is on its last line; the backtrace after it is nobody's.
TEST(TorchMessageTest, AllOfNcclsWordsAreKeptAndNoBacktrace) {
  const Status status = StatusOfThrow([] {
    ThrowNccl("NCCL error in: a.cpp:5, invalid usage\nncclInvalidUsage: invalid.\nLast error:\nDuplicate GPU detected");
  });
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("NCCL error in: a.cpp:5"), HasSubstr("Last error: Duplicate GPU detected"),
                    Not(HasSubstr("\n")), Not(HasSubstr("frame #"))));
}

}  // namespace
}  // namespace distill
