// SaveTorchScript: the net as a TorchScript module hierarchy, written out as source text and compiled by torch's own
// compiler; no tracing, no Python. Apart from weights.cc because torch's JIT headers are heavy.
#include <torch/csrc/jit/api/module.h>
#include <torch/torch.h>

#include <map>
#include <sstream>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/module_path.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

using State = std::map<std::string, torch::Tensor>;

bool HasState(const ModuleDef& def) {
  return !def.children.empty() || def.kind == ModuleKind::kConv2d || def.kind == ModuleKind::kBatchNorm2d ||
         def.kind == ModuleKind::kLinear;
}

// Modules that hold the tensors under their names. They have no methods: the root's forward does all.
torch::jit::Module BuildModule(const ModuleDef& def, const std::string& path, const State& state,
                               const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
  torch::jit::Module module(StrCat("__torch__.distillery.", Name(def.kind)), unit, /*shouldMangle=*/true);
  // Python's ScriptModule keeps `training` on the C++ side and expects it there.
  module.register_attribute("training", c10::BoolType::get(), false);
  const auto copy = [&](const std::string& name) {
    const torch::Tensor& value = state.at(JoinModulePath(path, name));
    return torch::empty(value.sizes(), value.is_floating_point() ? torch::kFloat32 : torch::kInt64)
        .copy_(value.detach());
  };
  if (def.kind == ModuleKind::kConv2d) {
    module.register_parameter("weight", copy("weight"), false);
    if (def.bias) module.register_parameter("bias", copy("bias"), false);
  } else if (def.kind == ModuleKind::kBatchNorm2d) {
    for (const char* name : {"weight", "bias"}) module.register_parameter(name, copy(name), false);
    for (const char* name : {"running_mean", "running_var", "num_batches_tracked"})
      module.register_buffer(name, copy(name));
  } else if (def.kind == ModuleKind::kLinear) {
    for (const char* name : {"weight", "bias"}) module.register_parameter(name, copy(name), false);
  }
  for (const ModuleDef& child : def.children) {
    if (HasState(child))
      module.register_module(child.name, BuildModule(child, JoinModulePath(path, child.name), state, unit));
  }
  return module;
}

// Writes the body of forward(), one line per operation; `x` is the running value.
class SourceWriter {
 public:
  explicit SourceWriter(const std::vector<std::string>& taps) : taps_(taps) {}

  // The whole method.
  std::string Forward(const ModuleDef& root, bool dense) {
    body_.clear();
    if (dense) Line("size", "[torch.size(x, 2), torch.size(x, 3)]");  // the image's, for `upsample`
    Emit(root, "", "self", "x");
    if (taps_.empty()) return StrCat("def forward(self, x: Tensor) -> Tensor:\n", body_, "    return x\n");
    return StrCat("def forward(self, x: Tensor) -> Dict[str, Tensor]:\n    taps: Dict[str, Tensor] = {}\n", body_,
                  "    taps[\"output\"] = x\n    return taps\n");
  }

 private:
  void Line(const std::string& variable, const std::string& expression) {
    StrAppend(&body_, "    ", variable, " = ", expression, "\n");
  }
  void Tap(const std::string& path, const std::string& variable) {
    for (const std::string& tap : taps_) {
      if (tap == path && !path.empty()) Line(StrCat("taps[\"", path, "\"]"), variable);
    }
  }
  static std::string Pair(uint32_t n) { return StrCat("[", n, ", ", n, "]"); }

  // `self` is the expression of the module itself.
  void Emit(const ModuleDef& def, const std::string& path, const std::string& self, const std::string& v) {
    const auto child_self = [&](const ModuleDef& child) { return StrCat("getattr(", self, ", \"", child.name, "\")"); };
    switch (def.kind) {
      case ModuleKind::kSequential:
        for (const ModuleDef& child : def.children) Emit(child, JoinModulePath(path, child.name), child_self(child), v);
        break;
      case ModuleKind::kBasicBlock:
      case ModuleKind::kBottleneck:
        Line("shortcut", v);
        for (const ModuleDef& child : def.children) {
          const std::string child_path = JoinModulePath(path, child.name);
          if (child.kind == ModuleKind::kAdd) {
            Line(v, StrCat(v, " + shortcut"));
            Tap(child_path, v);
            Line(v, StrCat("torch.relu(", v, ")"));
          } else if (child.name == "downsample") {
            Emit(child, child_path, child_self(child), "shortcut");
          } else {
            if (child.kind == ModuleKind::kConv2d && child.name != "conv1") Line(v, StrCat("torch.relu(", v, ")"));
            Emit(child, child_path, child_self(child), v);
          }
        }
        break;
      case ModuleKind::kConv2d:
        Line(v, StrCat("torch.conv2d(", v, ", ", self, ".weight, ", def.bias ? StrCat(self, ".bias") : "None", ", ",
                       Pair(def.stride), ", ", Pair(def.padding), ", ", Pair(def.dilation), ", 1)"));
        break;
      case ModuleKind::kBatchNorm2d:
        Line(v, StrCat("torch.batch_norm(", v, ", ", self, ".weight, ", self, ".bias, ", self, ".running_mean, ", self,
                       ".running_var, False, 0.1, 1e-05, True)"));
        break;
      case ModuleKind::kRelu:
        Line(v, StrCat("torch.relu(", v, ")"));
        break;
      case ModuleKind::kMaxPool2d:
        Line(v, StrCat("torch.max_pool2d(", v, ", ", Pair(def.kernel), ", ", Pair(def.stride), ", ", Pair(def.padding),
                       ", [1, 1], False)"));
        break;
      case ModuleKind::kGlobalAvgPool:
        Line(v, StrCat("torch.adaptive_avg_pool2d(", v, ", [1, 1])"));
        break;
      case ModuleKind::kFlatten:
        Line(v, StrCat("torch.flatten(", v, ", 1)"));
        break;
      case ModuleKind::kLinear:
        Line(v, StrCat("torch.linear(", v, ", ", self, ".weight, ", self, ".bias)"));
        break;
      case ModuleKind::kUpsample:
        Line(v, StrCat("torch.upsample_bilinear2d(", v, ", size, False)"));
        break;
      case ModuleKind::kAdd:
      case ModuleKind::kOpaque:
        break;
    }
    Tap(path, v);
  }

  const std::vector<std::string>& taps_;
  std::string body_;
};

}  // namespace

Status SaveTorchScript(const ZooNet& net, const std::string& path, const std::vector<std::string>& taps) {
  const Architecture& arch = net.architecture();
  for (const std::string& tap : taps) {
    if (arch.FindTap(tap) != nullptr) continue;
    std::vector<std::string> paths;
    for (const TapInfo& info : arch.taps()) paths.push_back(info.path);
    return absl::InvalidArgumentError(StrCat(arch.spec().arch, " has no tap '", tap, "'", DidYouMean(tap, paths)));
  }
  std::string archive;
  try {
    State state;
    for (const auto& item : net.named_parameters()) state.emplace(item.key(), item.value());
    for (const auto& item : net.named_buffers()) state.emplace(item.key(), item.value());
    torch::jit::Module module = BuildModule(arch.root(), "", state, std::make_shared<torch::jit::CompilationUnit>());
    module.define(SourceWriter(taps).Forward(arch.root(), arch.dense()));
    std::ostringstream out;
    module.save(out);
    archive = std::move(out).str();
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("exporting ", arch.spec().arch, " as TorchScript"));
  }
  return WriteFileAtomically(path, archive);
}

}  // namespace distill
