#include "common/zoo/torchscript_net.h"

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <algorithm>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/archive_probe.h"
#include "common/zoo/file_kind.h"

namespace distill {
namespace {

// Why torch could not read an archive, in words that help where it is known what they mean.
std::string LoadErrorText(const std::exception& error) {
  const std::string text = ArchiveErrorText(error);
  const auto says = [&](const char* part) { return text.find(part) != std::string::npos; };
  if (says("maximum supported version for reading") || says("newer") || says("Unknown builtin op")) {
    return StrCat(text, " (it was saved by a PyTorch newer than the ", TORCH_VERSION,
                  " in here, or uses operators of another library; save it with PyTorch ", TORCH_VERSION, " or older)");
  }
  if (says("required keyword attribute") || says("mkldnn") || says("prepacked")) {
    return StrCat(
        text,
        " (torch.jit.optimize_for_inference prepares weights for the process that calls it, and such an archive "
        "cannot be loaded again; save the archive before that call: torch.jit.freeze is enough)");
  }
  if (says("PytorchStreamReader") || says("miniz")) return StrCat("it is no TorchScript archive, or damaged: ", text);
  return text;
}

class LoadedNet : public TorchScriptNet {
 public:
  LoadedNet(std::string path, torch::jit::Module module) : path_(std::move(path)), module_(std::move(module)) {}

  Status Probe(const ModelSpec& spec, const torch::Device& device) {
    auto taps = ProbeArchive([this](const torch::Tensor& x) { return RunModule(x); }, spec, device);
    if (!taps.ok()) return Annotate(taps.status(), Name());
    taps_ = *std::move(taps);
    return OkStatus();
  }

  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x, const std::vector<std::string>& taps) override {
    ArchiveOutputs outputs;
    try {
      auto ran = RunModule(x);
      if (!ran.ok()) return Annotate(ran.status(), Name());
      outputs = *std::move(ran);
    } catch (const std::exception& error) {
      const Status status = TorchStatus(error, "");
      return Status(status.code(), ToAbsl(StrCat("forward of '", path_, "': ", ArchiveErrorText(error))));
    }
    std::vector<torch::Tensor> values;
    for (const std::string& path : taps) {
      const auto tap = std::find_if(taps_.begin(), taps_.end(), [&](const TapInfo& info) { return info.path == path; });
      if (tap == taps_.end()) {
        std::vector<std::string> names;
        for (const TapInfo& info : taps_) names.push_back(info.path);
        return absl::InvalidArgumentError(StrCat(Name(), " has no tap '", path, "'", DidYouMean(path, names)));
      }
      const auto found = outputs.find(path);
      if (found == outputs.end()) {
        return absl::InternalError(
            StrCat(Name(), " returned no tap '", path, "' for ", x.size(0), " images, as it did when it was loaded"));
      }
      if (const Status right = CheckArchiveOutput(found->second, x.size(0), *tap); !right.ok()) {
        return Annotate(right, Name());
      }
      values.push_back(found->second);
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
  StatusOr<ArchiveOutputs> RunModule(const torch::Tensor& x) {
    const torch::NoGradGuard no_grad;
    // Without the profiling optimizer the first call computes what the hundredth does, and no shape triggers a
    // recompilation.
    const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
    // A method handle of our own: Module::forward is not const.
    const c10::IValue result = module_.get_method("forward")({x});
    if (result.isTensor()) return ArchiveOutputs{{"", result.toTensor()}};
    if (result.isGenericDict()) {
      ArchiveOutputs outputs;
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
    return absl::FailedPreconditionError("forward must return a Tensor or a Dict[str, Tensor]");
  }
  std::string Name() const { return StrCat("TorchScript archive '", path_, "'"); }

  const std::string path_;
  const torch::jit::Module module_;
  std::vector<TapInfo> taps_;
};

}  // namespace

StatusOr<std::unique_ptr<TorchScriptNet>> TorchScriptNet::Load(const std::string& path, const ModelSpec& spec,
                                                               const std::string& device) {
  DISTILL_RETURN_IF_ERROR(CheckModelFile(path, ModelFormat::kArchive));
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
    return absl::DataLossError(StrCat("cannot load '", path, "': ", LoadErrorText(load_error)));
  }
  return net;
}

}  // namespace distill
