#include "common/zoo/torchscript_net.h"

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <filesystem>
#include <map>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "common/torch_status.h"

namespace distill {
namespace {

using Outputs = std::map<std::string, torch::Tensor>;

class LoadedNet : public TorchScriptNet {
 public:
  LoadedNet(std::string path, torch::jit::Module module) : path_(std::move(path)), module_(std::move(module)) {}

  Status Probe(const ModelSpec& spec, const torch::Device& device) {
    const torch::Tensor blank = torch::zeros({2, spec.in_channels, spec.image_height, spec.image_width}, device);
    Outputs outputs;
    try {
      DISTILL_ASSIGN_OR_RETURN(outputs, RunModule(blank));
    } catch (const std::exception& error) {
      return absl::FailedPreconditionError(StrCat("TorchScript archive '", path_, "' fails on a float (2, ",
                                                  spec.in_channels, ", ", spec.image_height, ", ", spec.image_width,
                                                  ") input: ", TorchMessage(error)));
    }
    for (const auto& [name, value] : outputs) {
      if (!value.defined() || !value.is_floating_point() || value.dim() < 2 || value.size(0) != 2) {
        return absl::FailedPreconditionError(StrCat("TorchScript archive '", path_, "': tap '", name,
                                                    "' is no floating-point tensor with the batch as first axis"));
      }
      TapInfo tap{.path = name, .kind = ModuleKind::kOpaque, .shape = {}};
      for (int64_t i = 1; i < value.dim(); ++i) tap.shape.push_back(static_cast<uint32_t>(value.size(i)));
      taps_.push_back(std::move(tap));
    }
    if (taps_.empty())
      return absl::FailedPreconditionError(StrCat("TorchScript archive '", path_, "' returns an empty dictionary"));
    return OkStatus();
  }

  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x, const std::vector<std::string>& taps) override {
    Outputs outputs;
    try {
      DISTILL_ASSIGN_OR_RETURN(outputs, RunModule(x));
    } catch (const std::exception& error) {
      return TorchStatus(error, StrCat("forward of '", path_, "'"));
    }
    std::vector<torch::Tensor> values;
    for (const std::string& tap : taps) {
      const auto it = outputs.find(tap);
      if (it == outputs.end()) {
        std::vector<std::string> names;
        for (const auto& [name, value] : outputs) names.push_back(name);
        return absl::InvalidArgumentError(
            StrCat("TorchScript archive '", path_, "' has no tap '", tap, "'", DidYouMean(tap, names)));
      }
      values.push_back(it->second);
    }
    return values;
  }

  const std::vector<TapInfo>& taps() const override { return taps_; }
  uint64_t ParameterCount() const override {
    uint64_t count = 0;
    for (const torch::Tensor& parameter : module_.parameters()) count += static_cast<uint64_t>(parameter.numel());
    return count;
  }

 private:
  // Throws what torch throws.
  StatusOr<Outputs> RunModule(const torch::Tensor& x) {
    const torch::NoGradGuard no_grad;
    // Without the profiling optimizer the first call computes what the hundredth does, and no shape triggers a
    // recompilation.
    const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
    // A method handle of our own: Module::forward is not const.
    const c10::IValue result = module_.get_method("forward")({x});
    if (result.isTensor()) return Outputs{{"", result.toTensor()}};
    if (result.isGenericDict()) {
      Outputs outputs;
      for (const auto& item : result.toGenericDict()) {
        if (!item.key().isString() || !item.value().isTensor()) return NotATensor();
        const std::string& name = item.key().toStringRef();
        outputs[name == "output" ? "" : name] = item.value().toTensor();
      }
      if (const auto out = outputs.find("out"); out != outputs.end()) outputs.emplace("", out->second);
      return outputs;
    }
    return NotATensor();
  }
  Status NotATensor() const {
    return absl::FailedPreconditionError(
        StrCat("TorchScript archive '", path_, "': forward must return a Tensor or a Dict[str, Tensor]"));
  }

  const std::string path_;
  const torch::jit::Module module_;
  std::vector<TapInfo> taps_;
};

}  // namespace

StatusOr<std::unique_ptr<TorchScriptNet>> TorchScriptNet::Load(const std::string& path, const ModelSpec& spec,
                                                               const std::string& device) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(StrCat("TorchScript archive '", path, "' does not exist or is not a file"));
  }
  std::unique_ptr<LoadedNet> net;
  try {
    const torch::Device torch_device(device);
    torch::jit::Module module = torch::jit::load(path, torch_device);
    module.eval();
    if (!module.find_method("forward")) {
      return absl::FailedPreconditionError(StrCat("TorchScript archive '", path, "' has no forward method"));
    }
    net = std::make_unique<LoadedNet>(path, std::move(module));
    DISTILL_RETURN_IF_ERROR(net->Probe(spec, torch_device));
  } catch (const std::exception& load_error) {
    return absl::DataLossError(StrCat("cannot load TorchScript archive '", path, "': ", TorchMessage(load_error)));
  }
  return net;
}

}  // namespace distill
