// SaveTorchScript: the net as a TorchScript module hierarchy, written out as source text and compiled by torch's own
// compiler; no tracing, no Python. Apart from weights.cc because torch's JIT headers are heavy.
#include <torch/csrc/jit/api/module.h>
#include <torch/torch.h>

#include <map>
#include <sstream>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/module_path.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

using State = std::map<std::string, torch::Tensor>;

bool HasState(const ModuleDef& def) {
  return IsContainer(def.kind) || def.kind == ModuleKind::kConv2d || def.kind == ModuleKind::kBatchNorm2d ||
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

// Writes the body of forward(), one line per operation, each with a variable of its own.
class SourceWriter {
 public:
  explicit SourceWriter(const std::vector<std::string>& taps) : taps_(taps) {}

  // The whole method.
  std::string Forward(const ModuleDef& root) {
    body_.clear();
    const std::string output = Container(root, "", "self", {"x"});
    if (taps_.empty()) return StrCat("def forward(self, x: Tensor) -> Tensor:\n", body_, "    return ", output, "\n");
    return StrCat("def forward(self, x: Tensor) -> Dict[str, Tensor]:\n    taps: Dict[str, Tensor] = {}\n", body_,
                  "    taps[\"output\"] = ", output, "\n    return taps\n");
  }

 private:
  // Returns the name of the variable.
  std::string Line(const std::string& expression) {
    std::string variable = StrCat("v", ++variables_);
    StrAppend(&body_, "    ", variable, " = ", expression, "\n");
    return variable;
  }
  static std::string Pair(uint32_t n) { return StrCat("[", n, ", ", n, "]"); }

  // `self` is the expression of the module itself. Returns the variable of its output.
  std::string Emit(const ModuleDef& def, const std::string& path, const std::string& self,
                   const std::vector<std::string>& inputs) {
    const std::string output =
        IsContainer(def.kind) ? Container(def, path, self, inputs) : Line(Leaf(def, self, inputs));
    for (const std::string& tap : taps_) {
      if (!def.name.empty() && tap == path) StrAppend(&body_, "    taps[\"", path, "\"] = ", output, "\n");
    }
    return output;
  }

  std::string Container(const ModuleDef& def, const std::string& path, const std::string& self,
                        std::vector<std::string> values) {
    for (const Step& step : StepsOf(def)) {
      const ModuleDef& child = def.children[step.child];
      std::vector<std::string> inputs;
      for (const uint32_t i : step.inputs) inputs.push_back(values[i]);
      values.push_back(
          Emit(child, JoinModulePath(path, child.name), StrCat("getattr(", self, ", \"", child.name, "\")"), inputs));
    }
    return values.back();
  }

  // The expression of a leaf's output.
  std::string Leaf(const ModuleDef& def, const std::string& self, const std::vector<std::string>& inputs) {
    const std::string& x = inputs[0];
    switch (def.kind) {
      case ModuleKind::kConv2d:
        return StrCat("torch.conv2d(", x, ", ", self, ".weight, ", def.bias ? StrCat(self, ".bias") : "None", ", ",
                      Pair(def.stride), ", ", Pair(def.padding), ", ", Pair(def.dilation), ", ", def.groups, ")");
      case ModuleKind::kBatchNorm2d:
        return StrCat("torch.batch_norm(", x, ", ", self, ".weight, ", self, ".bias, ", self, ".running_mean, ", self,
                      ".running_var, False, 0.1, 1e-05, True)");
      case ModuleKind::kRelu:
        return StrCat("torch.relu(", x, ")");
      case ModuleKind::kRelu6:
        return StrCat("torch.relu6(", x, ")");
      case ModuleKind::kMaxPool2d:
        return StrCat("torch.max_pool2d(", x, ", ", Pair(def.kernel), ", ", Pair(def.stride), ", ", Pair(def.padding),
                      ", [1, 1], False)");
      case ModuleKind::kAvgPool2d:
        return StrCat("torch.adaptive_avg_pool2d(", x, ", [", def.out_height, ", ", def.out_width, "])");
      case ModuleKind::kFlatten:
        return StrCat("torch.flatten(", x, ", 1)");
      case ModuleKind::kLinear:
        return StrCat("torch.linear(", x, ", ", self, ".weight, ", self, ".bias)");
      case ModuleKind::kUpsample: {
        // Without a second value: to the image's size, whatever that is when the archive runs.
        const std::string like = inputs.size() == 2 ? inputs[1] : "x";
        return StrCat("torch.upsample_bilinear2d(", x, ", [torch.size(", like, ", 2), torch.size(", like, ", 3)], ",
                      def.align_corners ? "True" : "False", ")");
      }
      case ModuleKind::kAdd:
        return StrCat(x, " + ", inputs[1]);
      case ModuleKind::kConcat:
        return StrCat("torch.cat([", absl::StrJoin(inputs, ", "), "], 1)");
      case ModuleKind::kFirstHalf:
        return StrCat("torch.chunk(", x, ", 2, 1)[0]");
      case ModuleKind::kSecondHalf:
        return StrCat("torch.chunk(", x, ", 2, 1)[1]");
      case ModuleKind::kShuffle:
        return StrCat("torch.channel_shuffle(", x, ", 2)");
      default:
        return x;  // containers are not leaves, and the zoo has nothing opaque
    }
  }

  const std::vector<std::string>& taps_;
  std::string body_;
  int variables_ = 0;
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
    module.define(SourceWriter(taps).Forward(arch.root()));
    std::ostringstream out;
    module.save(out);
    archive = std::move(out).str();
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("exporting ", arch.spec().arch, " as TorchScript"));
  }
  return WriteFileAtomically(path, archive);
}

}  // namespace distill
