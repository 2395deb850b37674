#include "common/zoo/torchscript_net.h"

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "common/nearest_name.h"
#include "common/safetensors/safetensors.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/archive_graph.h"
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
  LoadedNet(std::string path, torch::jit::Module module, const TorchScriptOptions& options)
      : path_(std::move(path)), options_(options), module_(std::move(module)) {
    for (const auto& one : module_.named_modules()) {
      if (one.value.hasattr("training")) modules_.push_back({one.name, one.value});
    }
  }

  // What the archive is, and, when it is to be trained, whether it can be.
  Status Learn(const ModelSpec& spec, const torch::Device& device) {
    std::string why;
    graph_ = ArchiveGraph::Create(module_, &why);
    auto taps = ProbeArchive([this](const torch::Tensor& x) { return RunModule(x); }, spec, device);
    if (!taps.ok()) return Annotate(taps.status(), Name());
    taps_ = *std::move(taps);
    InExecutionOrder();
    for (const std::string& stage : options_.stages) {
      const auto tap = std::find_if(taps_.begin(), taps_.end(), [&](const TapInfo& one) { return one.path == stage; });
      if (stage.empty() || tap == taps_.end() || tap->shape.size() != 3) {
        return Refuse(StrCat("stages: '", stage, tap == taps_.end() ? "' is no tap of it" : "' is no map [C, H, W]",
                             DidYouMean(stage, Paths())));
      }
      tap->stage_end = true;
    }
    return options_.training ? PrepareTraining(spec, why) : OkStatus();
  }

  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x, const std::vector<std::string>& taps) override {
    return Run(x, "", taps);
  }
  StatusOr<std::vector<torch::Tensor>> ForwardAfter(const std::string& start, const torch::Tensor& value,
                                                    const std::vector<std::string>& taps) override {
    if (!architecture_->CanStartAfter(start)) {
      return absl::InvalidArgumentError(
          StrCat(Name(), " cannot start after '", start, "': not everything flows through it"));
    }
    DISTILL_RETURN_IF_ERROR(CheckArchiveOutput(value, value.size(0), *FindTap(start)));
    return Run(value, start, taps);
  }

  StatusOr<torch::Tensor> ForwardAtAnySize(const torch::Tensor&) override {
    const ModelSpec& spec = architecture_->spec();
    return absl::InvalidArgumentError(StrCat(Name(), " was checked with pictures of [", spec.image_height, ", ",
                                             spec.image_width, "] and takes no others"));
  }
  const Architecture& architecture() const override { return *architecture_; }
  const std::vector<TapInfo>& taps() const override { return taps_; }
  bool runs_prefixes() const override { return graph_ != nullptr; }
  uint64_t ParameterCount() const override {
    uint64_t count = 0;
    for (const torch::Tensor& parameter : module_.parameters()) count += static_cast<uint64_t>(parameter.numel());
    return count;
  }
  std::vector<StateTensor> State() const override { return state_; }

  void SetTraining(std::string_view path, bool training) override {
    for (NamedModule& one : modules_) {
      if (IsUnder(one.name, path)) one.module.setattr("training", training);
    }
  }
  std::vector<bool> Modes() const override {
    std::vector<bool> modes;
    for (const NamedModule& one : modules_) modes.push_back(one.module.attr("training").toBool());
    return modes;
  }
  void SetModes(const std::vector<bool>& modes) override {
    for (size_t i = 0; i < modules_.size(); ++i) modules_[i].module.setattr("training", static_cast<bool>(modes[i]));
  }

  Status SetNormRanks(NormRanks* ranks) override {
    if (ranks == nullptr) return OkStatus();
    return absl::InvalidArgumentError(
        StrCat(Name(),
               ": its batch norms are parts of its own program and see the images of one rank; leave "
               "sync_batch_norm out"));
  }
  void InitWeights(uint64_t) override {}
  void MoveTo(const torch::Device& device) override { module_.to(device); }

  Status Export(const std::string& path) const override {
    std::string archive;
    try {
      torch::jit::Module copy = module_.deepcopy(torch::Device(torch::kCPU));
      copy.eval();
      for (torch::Tensor parameter : copy.parameters()) parameter.requires_grad_(false);
      std::ostringstream out;
      copy.save(out);
      archive = std::move(out).str();
    } catch (const std::exception& error) {
      return TorchStatus(error, StrCat("writing ", Name()));
    }
    return WriteFileAtomically(path, archive);
  }

 private:
  struct NamedModule {
    std::string name;  // "" for the whole
    torch::jit::Module module;
  };

  Status Refuse(const std::string& what) const { return absl::FailedPreconditionError(StrCat(Name(), ": ", what)); }

  std::vector<std::string> Paths() const {
    std::vector<std::string> paths;
    for (const TapInfo& info : taps_) paths.push_back(info.path);
    return paths;
  }
  const TapInfo* FindTap(const std::string& path) const {
    const auto tap = std::find_if(taps_.begin(), taps_.end(), [&](const TapInfo& info) { return info.path == path; });
    return tap == taps_.end() ? nullptr : &*tap;
  }

  // The output first, then the taps as they are computed, where the graph says it.
  void InExecutionOrder() {
    if (graph_ == nullptr) return;
    const auto rank = [&](const TapInfo& info) -> size_t {
      if (info.path.empty()) return 0;
      const auto& known = graph_->taps();
      return 1 + static_cast<size_t>(
                     std::find_if(known.begin(), known.end(), [&](const auto& tap) { return tap.path == info.path; }) -
                     known.begin());
    };
    std::stable_sort(taps_.begin(), taps_.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  }

  Status PrepareTraining(const ModelSpec& spec, const std::string& why_no_graph) {
    if (graph_ == nullptr) return Refuse(StrCat("it cannot be trained: ", why_no_graph));
    if (const std::string against = graph_->AgainstTraining(); !against.empty()) {
      return Refuse(StrCat("it cannot be trained: ", against));
    }
    std::vector<StateEntry> entries;
    std::map<std::string, uint32_t> position;
    std::map<const void*, std::string> seen;
    const auto add = [&](const std::string& name, const torch::Tensor& tensor, bool is_buffer) -> Status {
      const bool integer = tensor.scalar_type() == torch::kInt64;
      if (tensor.scalar_type() != torch::kFloat32 && !(integer && is_buffer)) {
        return Refuse(StrCat("'", name, "' is ", c10::toString(tensor.scalar_type()), "; a student ",
                             is_buffer ? "keeps float32 and int64 buffers" : "trains in float32",
                             ": call .float() on the network before it is exported"));
      }
      const auto [other, fresh] = seen.emplace(tensor.unsafeGetTensorImpl(), name);
      if (!fresh) {
        return Refuse(
            StrCat("'", name, "' and '", other->second, "' are one tensor; a student's parameters are apart"));
      }
      position.emplace(name, static_cast<uint32_t>(entries.size()));
      entries.push_back({name, tensor.sizes().vec(), is_buffer, integer});
      state_.push_back({name, tensor, is_buffer});
      return OkStatus();
    };
    for (const auto& one : module_.named_parameters()) DISTILL_RETURN_IF_ERROR(add(one.name, one.value, false));
    for (const auto& one : module_.named_buffers()) DISTILL_RETURN_IF_ERROR(add(one.name, one.value, true));
    if (position.empty()) return Refuse("it has no parameters (torch.jit.freeze makes constants of them)");
    for (TapInfo& tap : taps_) {
      const ArchiveGraph::Tap* known = graph_->Find(tap.path);
      tap.is_cut = known->is_cut && tap.shape.size() == 3;
      for (const std::string& name : known->parameters) tap.needs.push_back(position.at(name));
      std::sort(tap.needs.begin(), tap.needs.end());
    }
    StatusOr<Architecture> architecture = Architecture::OfArchive(spec, taps_, entries);
    if (!architecture.ok()) return Refuse(std::string(architecture.status().message()));
    architecture_ = *std::move(architecture);
    if (graph_->HasNarrowStridedConv(module_)) {
      row_major_ = true;
      for (StateTensor& one : state_) one.tensor.set_data(one.tensor.contiguous());
    }
    return TryTraining();
  }

  // A step in train mode, after which everything is as before.
  Status TryTraining() {
    std::vector<torch::Tensor> kept;
    for (const StateTensor& one : state_) kept.push_back(one.tensor.detach().clone());
    const ModelSpec& spec = architecture_->spec();
    Status tried;
    try {
      SetTraining("", true);
      for (StateTensor& one : state_) one.tensor.requires_grad_(!one.is_buffer);
      const torch::Tensor x = torch::rand({2, spec.in_channels, spec.image_height, spec.image_width},
                                          state_.front().tensor.options().requires_grad(false));
      auto values = Run(x, "", {""});
      if (values.ok()) {
        (*values)[0].sum().backward();
      } else {
        tried = values.status();
      }
    } catch (const std::exception& error) {
      tried = Refuse(StrCat("a step in train mode fails: ", ArchiveErrorText(error)));
    }
    const torch::NoGradGuard no_grad;
    SetTraining("", false);
    for (size_t i = 0; i < state_.size(); ++i) {
      state_[i].tensor.requires_grad_(false);
      state_[i].tensor.mutable_grad() = torch::Tensor();
      state_[i].tensor.copy_(kept[i]);
    }
    return tried;
  }

  StatusOr<std::vector<torch::Tensor>> Run(torch::Tensor x, const std::string& start,
                                           const std::vector<std::string>& taps) {
    if (taps.empty()) return absl::InvalidArgumentError(StrCat("forward of ", Name(), ": no tap was asked for"));
    for (const std::string& path : taps) {
      if (FindTap(path) == nullptr) {
        return absl::InvalidArgumentError(StrCat(Name(), " has no tap '", path, "'", DidYouMean(path, Paths())));
      }
    }
    std::vector<torch::Tensor> values;
    try {
      std::optional<torch::NoGradGuard> no_grad;
      if (!options_.training) no_grad.emplace();
      // A copy: with one channel the strides of channels_last count as contiguous, and convolutions go by the strides.
      if (row_major_) x = x.clone(torch::MemoryFormat::Contiguous);
      auto ran = graph_ != nullptr ? graph_->Run(module_, x, start, taps) : RunWhole(x, taps);
      if (!ran.ok()) return Annotate(ran.status(), Name());
      values = *std::move(ran);
    } catch (const std::exception& error) {
      const Status status = TorchStatus(error, "");
      return Status(status.code(), ToAbsl(StrCat("forward of '", path_, "': ", ArchiveErrorText(error))));
    }
    for (size_t i = 0; i < taps.size(); ++i) {
      const Status right = CheckArchiveOutput(values[i], x.size(0), *FindTap(taps[i]));
      if (!right.ok()) return Annotate(right, Name());
    }
    return values;
  }

  StatusOr<std::vector<torch::Tensor>> RunWhole(const torch::Tensor& x, const std::vector<std::string>& taps) {
    DISTILL_ASSIGN_OR_RETURN(const ArchiveOutputs outputs, RunModule(x));
    std::vector<torch::Tensor> values;
    for (const std::string& path : taps) {
      const auto found = outputs.find(path);
      if (found == outputs.end()) {
        return absl::InternalError(
            StrCat("it returned no tap '", path, "' for ", x.size(0), " images, as it did when it was loaded"));
      }
      values.push_back(found->second);
    }
    return values;
  }

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
  const TorchScriptOptions options_;
  torch::jit::Module module_;
  std::vector<NamedModule> modules_;
  std::unique_ptr<ArchiveGraph> graph_;  // null: the archive runs as a whole
  std::vector<TapInfo> taps_;
  // Of those that train:
  std::optional<Architecture> architecture_;
  std::vector<StateTensor> state_;
  bool row_major_ = false;  // a convolution is in it that must not see channels_last (common/zoo/narrow_conv.h)
};

}  // namespace

StatusOr<std::unique_ptr<TorchScriptNet>> TorchScriptNet::Load(const std::string& path, const ModelSpec& spec,
                                                               const TorchScriptOptions& options) {
  DISTILL_RETURN_IF_ERROR(CheckModelFile(path, ModelFormat::kArchive));
  std::unique_ptr<LoadedNet> net;
  try {
    const torch::Device torch_device(options.device);
    torch::jit::Module module = torch::jit::load(path, torch_device);
    module.eval();
    if (!module.find_method("forward")) {
      return absl::FailedPreconditionError(StrCat("TorchScript archive '", path, "' has no forward method"));
    }
    net = std::make_unique<LoadedNet>(path, std::move(module), options);
    DISTILL_RETURN_IF_ERROR(net->Learn(spec, torch_device));
  } catch (const std::exception& load_error) {
    return absl::DataLossError(StrCat("cannot load '", path, "': ", LoadErrorText(load_error)));
  }
  return net;
}

}  // namespace distill
