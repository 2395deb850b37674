// What a TorchScript archive is asked when it is loaded, because it may be any program: does it answer for the images
// it was given, one row each, and for each image by itself?
//
// An archive is traced with one batch and served with others. What can go wrong then goes wrong silently: rows that are
// not the images' (a batch size that became a constant), answers that depend on the company (batch normalization with
// the batch's statistics) or on chance (dropout), as a trace in training mode leaves them. `eval()` does not mend such
// a trace.
#ifndef DISTILL_COMMON_ZOO_ARCHIVE_PROBE_H_
#define DISTILL_COMMON_ZOO_ARCHIVE_PROBE_H_

#include <torch/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

// Taps by name; "" is the output.
using ArchiveOutputs = std::map<std::string, torch::Tensor>;
// x: float32 (N, C, H, W), normalised. May throw what torch throws.
using ArchiveFunction = std::function<StatusOr<ArchiveOutputs>(const torch::Tensor& x)>;

// Runs the archive on one, two and three pictures (noise, a ramp, dark squares: they differ in every statistic) of the
// spec's channels, size, mean and std, and returns its taps with the shapes measured, sorted by path.
// kFailedPrecondition names the tap and says what was seen and how to export properly: it fails on one of these
// batches; returns something that is no floating-point tensor with the batch as first axis; its shape depends on the
// number of images in another way; the same picture asked for twice gives two answers, or another one in company.
//
// Answers are compared up to a rounding that depends on the dtype (batches of different sizes may run different
// kernels); two runs of one picture alone up to a hundredth of that.
StatusOr<std::vector<TapInfo>> ProbeArchive(const ArchiveFunction& run, const ModelSpec& spec,
                                            const torch::Device& device);

// That `value`, an output for n images, is what the probe found: floating point, first axis n, the rest as in `tap`.
// kInternal with both shapes. To be called for every forward: a program may answer some images otherwise.
Status CheckArchiveOutput(const torch::Tensor& value, int64_t n, const TapInfo& tap);

// The sentence in torch's message that says what failed: of an error inside a TorchScript program, which begins with a
// traceback, the last line.
std::string ArchiveErrorText(const std::exception& error);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ARCHIVE_PROBE_H_
