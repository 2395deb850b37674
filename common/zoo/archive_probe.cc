#include "common/zoo/archive_probe.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/zoo_net.h"

namespace distill {
namespace {

std::string TapName(const std::string& path) { return path.empty() ? "the output" : StrCat("tap '", path, "'"); }

// uint8 (3, C, H, W): noise, a ramp from left to right, dark squares of 4 pixels.
torch::Tensor Pictures(const ModelSpec& spec) {
  const int64_t c = spec.in_channels, h = spec.image_height, w = spec.image_width;
  at::Generator generator = at::detail::createCPUGenerator(/*seed=*/20);
  const torch::Tensor noise = torch::randint(0, 256, {c, h, w}, generator, torch::kFloat32);
  const torch::Tensor ramp = torch::linspace(20, 235, w).expand({c, h, w});
  const torch::Tensor rows = torch::arange(h).div(4, "floor").view({h, 1});
  const torch::Tensor columns = torch::arange(w).div(4, "floor").view({1, w});
  const torch::Tensor squares = (rows + columns).remainder(2).mul(60).to(torch::kFloat32).expand({c, h, w});
  return torch::stack({noise, ramp, squares}).to(torch::kUInt8);
}

// Largest difference of two equal shapes as a share of the largest magnitude; 0 where both are not finite.
double Difference(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor x = a.to(torch::kCPU, torch::kFloat64), y = b.to(torch::kCPU, torch::kFloat64);
  const torch::Tensor finite = torch::isfinite(x).logical_and(torch::isfinite(y));
  if (torch::isfinite(x).ne(torch::isfinite(y)).any().item<bool>()) return std::numeric_limits<double>::infinity();
  const torch::Tensor zero = torch::zeros({}, torch::kFloat64);
  const double most = torch::where(finite, x, zero).abs().max().item<double>();
  const double off = torch::where(finite, x - y, zero).abs().max().item<double>();
  return most > 0 ? off / most : off;
}

// What rounding may do between batches of different sizes.
double Tolerance(torch::ScalarType dtype) {
  return dtype == torch::kFloat16 || dtype == torch::kBFloat16 ? 5e-2 : 1e-2;
}

class Probe {
 public:
  Probe(const ArchiveFunction& run, const ModelSpec& spec, const torch::Device& device)
      : run_(run), images_(NormalizePixels(Pictures(spec).to(device), spec, /*channels_last=*/true)) {}

  StatusOr<std::vector<TapInfo>> Run() {
    // Two images first: what fails on them fails for a reason of its own, not for their number.
    DISTILL_ASSIGN_OR_RETURN(const ArchiveOutputs two, Ask(2));
    if (two.empty()) return absl::FailedPreconditionError("it returns an empty dictionary");
    DISTILL_RETURN_IF_ERROR(Learn(two));
    DISTILL_ASSIGN_OR_RETURN(const ArchiveOutputs one, Ask(1));
    DISTILL_ASSIGN_OR_RETURN(const ArchiveOutputs again, Ask(1));
    DISTILL_ASSIGN_OR_RETURN(const ArchiveOutputs three, Ask(3));
    for (const auto& [n, outputs] : {std::pair(1, &one), std::pair(1, &again), std::pair(3, &three)}) {
      DISTILL_RETURN_IF_ERROR(CheckShapes(*outputs, n));
    }
    for (const TapInfo& tap : taps_) {
      const torch::Tensor& alone = one.at(tap.path);
      const double tolerance = Tolerance(alone.scalar_type());
      if (const double off = Difference(alone, again.at(tap.path)); off > tolerance / 100) return Random(tap, off);
      const double pair = Difference(alone, two.at(tap.path).narrow(0, 0, 1));
      const double triple = Difference(two.at(tap.path), three.at(tap.path).narrow(0, 0, 2));
      if (std::max(pair, triple) > tolerance) return DependsOnCompany(tap, std::max(pair, triple));
    }
    return taps_;
  }

 private:
  StatusOr<ArchiveOutputs> Ask(int64_t n) {
    const torch::Tensor x = images_.narrow(0, 0, n);
    try {
      return run_(x);
    } catch (const std::exception& error) {
      const std::string failure = StrCat("fails on a float (", n, ", ", x.size(1), ", ", x.size(2), ", ", x.size(3),
                                         ") input: ", ArchiveErrorText(error));
      if (taps_.empty()) return absl::FailedPreconditionError(failure);
      const bool training = failure.find("when training") != std::string::npos;  // batch norm of one value
      return absl::FailedPreconditionError(
          StrCat("it answers 2 images, but ", failure, "; ", training ? kEvalMode : kFixedBatch));
    }
  }

  Status Learn(const ArchiveOutputs& outputs) {
    for (const auto& [name, value] : outputs) {
      if (!value.defined() || !value.is_floating_point() || value.layout() != torch::kStrided || value.dim() < 2 ||
          value.size(0) != 2) {
        return absl::FailedPreconditionError(
            StrCat(TapName(name), " is no floating-point tensor with the batch as first axis: for 2 images it is ",
                   value.defined() ? StrCat(ToStd(c10::toString(value.scalar_type())), " ", ShapeText(value.sizes()))
                                   : std::string("undefined"),
                   "; return [N, K] or [N, C, H, W], and write x.flatten(1), not x.view(-1) or x.view(64, -1)"));
      }
      TapInfo tap{.path = name, .kind = ModuleKind::kOpaque, .shape = {}};
      for (int64_t i = 1; i < value.dim(); ++i) tap.shape.push_back(static_cast<uint32_t>(value.size(i)));
      taps_.push_back(std::move(tap));
    }
    return OkStatus();
  }

  Status CheckShapes(const ArchiveOutputs& outputs, int64_t n) const {
    for (const TapInfo& tap : taps_) {
      const auto found = outputs.find(tap.path);
      if (found == outputs.end() || outputs.size() != taps_.size()) {
        return absl::FailedPreconditionError(
            StrCat("it returns other taps for ", n, " images than for 2; every batch must get the same ones"));
      }
      if (const Status right = CheckArchiveOutput(found->second, n, tap); !right.ok()) {
        return absl::FailedPreconditionError(StrCat(right.message(), "; ", kFixedBatch));
      }
    }
    return OkStatus();
  }

  static Status Random(const TapInfo& tap, double off) {
    return absl::FailedPreconditionError(
        StrCat("the same picture asked for twice gives two answers (", TapName(tap.path), " differs by ", off,
               " of its largest value): dropout is active, as in a network traced in training mode; ", kEvalMode));
  }
  static Status DependsOnCompany(const TapInfo& tap, double off) {
    return absl::FailedPreconditionError(
        StrCat("the answer for a picture depends on those beside it (", TapName(tap.path), " differs by ", off,
               " of its largest value between a picture alone and in company): batch normalization uses the batch's "
               "statistics, as in a network traced in training mode; ",
               kEvalMode));
  }

  static constexpr std::string_view kEvalMode =
      "call model.eval() before torch.jit.trace or torch.jit.script and save it again";
  static constexpr std::string_view kFixedBatch =
      "the number of images became a constant, as a trace leaves it: use x.flatten(1) instead of view with numbers, "
      "and "
      "torch.jit.script, or trace code that takes N from the tensor";

  const ArchiveFunction& run_;
  const torch::Tensor images_;  // (3, C, H, W), normalised
  std::vector<TapInfo> taps_;
};

}  // namespace

StatusOr<std::vector<TapInfo>> ProbeArchive(const ArchiveFunction& run, const ModelSpec& spec,
                                            const torch::Device& device) {
  return Probe(run, spec, device).Run();
}

Status CheckArchiveOutput(const torch::Tensor& value, int64_t n, const TapInfo& tap) {
  std::vector<int64_t> expected = {n};
  expected.insert(expected.end(), tap.shape.begin(), tap.shape.end());
  if (value.defined() && value.is_floating_point() && value.layout() == torch::kStrided &&
      value.sizes() == torch::IntArrayRef(expected)) {
    return OkStatus();
  }
  return absl::InternalError(
      StrCat(TapName(tap.path), " has shape ", value.defined() ? ShapeText(value.sizes()) : "(undefined)", " for ", n,
             n == 1 ? " image" : " images", ", must be ", ShapeText(expected), " in floating point"));
}

std::string ArchiveErrorText(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  if (text.find("Traceback of TorchScript") == std::string::npos) return TorchMessage(error);
  // "RuntimeError: what", "builtins.ValueError: what" or "torch.jit.Error: ..." stands in the last line with words.
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  const size_t raised = text.rfind("Error: ");
  if (raised == std::string::npos) return text.substr(text.rfind('\n') + 1);
  const size_t begin = text.rfind('\n', raised);
  const size_t from = begin == std::string::npos ? 0 : begin + 1;
  return text.substr(from, text.find('\n', raised) - from);
}

}  // namespace distill
