// An exception that came out of torch (or gloo, NCCL, CUDA under it) as a Status, told by its type. Only for sources
// that include torch.
#ifndef DISTILL_COMMON_TORCH_STATUS_H_
#define DISTILL_COMMON_TORCH_STATUS_H_

#include <exception>
#include <string>
#include <string_view>

#include "common/status.h"

namespace distill {

// Without torch's C++ backtrace: its first line; of a communication library's error, whose reason stands on the last
// one ("... Last error: Duplicate GPU detected"), all lines as one.
std::string TorchMessage(const std::exception& error);

// `what` names the operation. The Status is marked with its FailureKind (common/failure_kind.h):
// clang-format off
//   a group's member or connection is lost (c10::DistError, gloo's exceptions)   kAborted            kPassing
//     ... but NCCL cannot use this worker's GPUs (invalid usage or argument,
//         a CUDA call of NCCL's fails)                                           kAborted            kWorker
//   out of memory (c10::OutOfMemoryError, std::bad_alloc, cudaErrorMemoryAllo-
//         cation, cuBLAS or cuDNN cannot allocate)                               kResourceExhausted  kWorker
//   a CUDA call fails and leaves the context usable (c10::AcceleratorError)      kInternal           kWorker
//     ... and the context is lost (illegal address, launch failure, ECC, ...)    kInternal           kWorker, and exit
//   any other c10::Error: shapes, types, what a kernel refuses                   kInternal           kJob
//   anything else                                                                kInternal           not marked
// clang-format on
// Out of memory says so in words, with what torch says was asked for.
Status TorchStatus(const std::exception& error, std::string_view what);

// Whether every later call into the device's context fails too: what CUDA calls a sticky error.
bool LosesCudaContext(const std::exception& error);

}  // namespace distill

#endif  // DISTILL_COMMON_TORCH_STATUS_H_
