#include "common/zoo/archive_graph.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <functional>
#include <set>
#include <unordered_set>

#include "common/str_cat.h"
#include "common/zoo/architecture.h"
#include "common/zoo/narrow_conv.h"

namespace distill {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// All values that a node reads, those of its inner blocks included.
void ForEachInput(const Node* node, const std::function<void(const Value*)>& visit) {
  for (const Value* input : node->inputs()) visit(input);
  for (const Block* block : node->blocks()) {
    for (const Node* inner : block->nodes()) ForEachInput(inner, visit);
    for (const Value* output : block->outputs()) visit(output);
  }
}

void ForEachNode(const Block* block, const std::function<void(const Node*)>& visit) {
  for (const Node* node : block->nodes()) {
    visit(node);
    for (const Block* inner : node->blocks()) ForEachNode(inner, visit);
  }
}

// The nodes on which `values` depend, going no further than `barrier` (may be null), and whether the graph's input
// number 1, the image, is among what they depend on.
struct Dependence {
  std::unordered_set<const Node*> nodes;
  bool on_image = false;

  Dependence(const Graph& graph, const std::vector<const Value*>& values, const Value* barrier) {
    const Value* const image = graph.inputs().at(1);
    std::vector<const Value*> open = values;
    while (!open.empty()) {
      const Value* value = open.back();
      open.pop_back();
      if (value == barrier) continue;
      if (value == image) on_image = true;
      const Node* node = value->node();
      if (!nodes.insert(node).second) continue;
      ForEachInput(node, [&](const Value* input) { open.push_back(input); });
    }
  }
};

// "layer1.0.conv1.weight" for the output of a chain of attribute reads that begins at self; "" for other values.
std::string AttributePath(const Graph& graph, const Value* value) {
  std::string path;
  while (value != graph.inputs().at(0)) {
    const Node* node = value->node();
    if (node->kind() != c10::prim::GetAttr) return "";
    const std::string& name = node->s(c10::attr::name);
    path = path.empty() ? name : StrCat(name, ".", path);
    value = node->input(0);
  }
  return path;
}

// The taps that the graph returns by name; empty when it cannot be told.
std::map<std::string, const Value*> ReturnedTaps(const Graph& graph) {
  std::map<std::string, const Value*> taps;
  if (graph.outputs().size() != 1) return {};
  const Value* result = graph.outputs()[0];
  if (result->type()->isSubtypeOf(*c10::TensorType::get())) return {{"", result}};
  const Node* dict = result->node();
  if (dict->kind() != c10::prim::DictConstruct) return {};
  for (size_t i = 0; i + 1 < dict->inputs().size(); i += 2) {
    const auto name = torch::jit::toIValue(dict->input(i));
    if (!name || !name->isString() || !dict->input(i + 1)->type()->isSubtypeOf(*c10::TensorType::get())) return {};
    taps[name->toStringRef() == "output" ? "" : name->toStringRef()] = dict->input(i + 1);
  }
  // `taps["name"] = x` behind its construction, in any order of uses.
  size_t seen = 1;  // the return
  for (const Node* node : graph.nodes()) {
    if (node->kind() != c10::aten::_set_item || node->input(0) != result) continue;
    const auto name = torch::jit::toIValue(node->input(1));
    if (!name || !name->isString() || !node->input(2)->type()->isSubtypeOf(*c10::TensorType::get())) return {};
    taps[name->toStringRef() == "output" ? "" : name->toStringRef()] = node->input(2);
    ++seen;
  }
  if (seen != result->uses().size()) return {};  // something else is done with it
  if (const auto out = taps.find("out"); out != taps.end()) taps.emplace("", out->second);
  return taps;
}

// The larger of a convolution's strides; 2 where they are no constants.
int64_t StrideOf(const Value* strides) {
  if (const auto list = torch::jit::toIValue(strides); list && list->isIntList()) {
    const std::vector<int64_t> values = list->toIntVector();
    return values.empty() ? 1 : *std::max_element(values.begin(), values.end());
  }
  if (strides->node()->kind() != c10::prim::ListConstruct) return 2;
  int64_t most = 1;
  for (const Value* one : strides->node()->inputs()) {
    const auto value = torch::jit::toIValue(one);
    most = std::max<int64_t>(most, value && value->isInt() ? value->toInt() : 2);
  }
  return most;
}

// The name of the operator that overwrites `value`; "" when none does.
std::string Overwriter(const Value* value) {
  for (const torch::jit::Use& use : value->uses()) {
    const c10::FunctionSchema* schema = use.user->maybeSchema();
    if (schema == nullptr || use.offset >= schema->arguments().size()) continue;
    const c10::AliasInfo* alias = schema->arguments()[use.offset].alias_info();
    if (alias != nullptr && alias->isWrite()) return use.user->kind().toQualString();
  }
  return "";
}

std::set<std::string> ParameterNames(const torch::jit::Module& module) {
  std::set<std::string> names;
  for (const auto& parameter : module.named_parameters()) names.insert(parameter.name);
  return names;
}

}  // namespace

std::unique_ptr<ArchiveGraph> ArchiveGraph::Create(const torch::jit::Module& module, std::string* why) {
  std::unique_ptr<ArchiveGraph> made(new ArchiveGraph());
  made->graph_ = module.get_method("forward").graph()->copy();
  torch::jit::Inline(*made->graph_);
  const Graph& graph = *made->graph_;
  if (graph.inputs().size() != 2) {
    *why = "forward takes more than one argument";
    return nullptr;
  }
  const std::map<std::string, const Value*> returned = ReturnedTaps(graph);
  if (returned.empty()) {
    *why =
        "forward does not end in `return {\"name\": map, ..., \"output\": logits}`, so that nobody can tell which "
        "value "
        "is which tap";
    return nullptr;
  }
  std::map<const Node*, size_t> position;  // in the body
  for (const Node* node : graph.nodes()) position.emplace(node, position.size());
  const std::set<std::string> names = ParameterNames(module);
  const auto output = returned.find("");
  for (const auto& [path, value] : returned) {
    const auto found = position.find(value->node());
    if (found == position.end()) {
      *why = StrCat("tap '", path, "' is the image itself");
      return nullptr;
    }
    if (const std::string by = Overwriter(value); !by.empty()) {
      *why = StrCat("the value of tap '", path, "' is overwritten later on, by ", by,
                    "; write it without the underscore (inplace=False)");
      return nullptr;
    }
    Tap tap{.path = path, .parameters = {}, .is_cut = false, .node = found->second, .output = value->offset()};
    std::set<std::string> parameters;
    for (const Node* node : Dependence(graph, {value}, nullptr).nodes) {
      if (node->kind() != c10::prim::GetAttr) continue;
      const std::string attribute = AttributePath(graph, node->output());
      if (names.contains(attribute)) parameters.insert(attribute);
    }
    tap.parameters.assign(parameters.begin(), parameters.end());
    tap.is_cut = !path.empty() && output != returned.end() && output->second != value &&
                 !Dependence(graph, {output->second}, value).on_image;
    made->taps_.push_back(std::move(tap));
  }
  // Of taps with one value the inner one ("layer1.1" before "layer1") first, as modules end.
  std::stable_sort(made->taps_.begin(), made->taps_.end(), [](const Tap& a, const Tap& b) {
    if (a.node != b.node) return a.node < b.node;
    if (a.path.empty() != b.path.empty()) return b.path.empty();
    return a.path.size() > b.path.size();
  });
  return made;
}

const ArchiveGraph::Tap* ArchiveGraph::Find(const std::string& path) const {
  const auto found = std::find_if(taps_.begin(), taps_.end(), [&](const Tap& tap) { return tap.path == path; });
  return found == taps_.end() ? nullptr : &*found;
}

std::string ArchiveGraph::AgainstTraining() const {
  std::string against;
  ForEachNode(graph_->block(), [&](const Node* node) {
    if (!against.empty()) return;
    if (node->kind() == c10::prim::SetAttr) {
      against = StrCat("forward assigns to self.", node->s(c10::attr::name),
                       ", which a checkpoint would miss; change buffers in place");
    } else if (node->kind() == c10::aten::batch_norm && torch::jit::toIValue(node->input(5)).has_value()) {
      against =
          "its batch normalization cannot be switched between training and evaluation: it was traced, or written for "
          "serving; export it with scripts/export_model.py, or torch.jit.script the network";
    }
  });
  return against;
}

bool ArchiveGraph::HasNarrowStridedConv(const torch::jit::Module& module) const {
  std::map<std::string, torch::Tensor> parameters;
  for (const auto& parameter : module.named_parameters()) parameters.emplace(parameter.name, parameter.value);
  bool found = false;
  ForEachNode(graph_->block(), [&](const Node* node) {
    const std::string_view kind = node->kind().toQualString();
    if (kind != "aten::conv2d" && kind != "aten::_convolution" && kind != "aten::convolution") return;
    const auto weight = parameters.find(AttributePath(*graph_, node->input(1)));
    // One that is computed is not judged by its shape: it counts as narrow.
    const bool known = weight != parameters.end() && weight->second.dim() == 4;
    found = found || !known ||
            IsNarrowStridedPointwise(weight->second.size(1), weight->second.size(2) * weight->second.size(3),
                                     StrideOf(node->input(3)));
  });
  return found;
}

StatusOr<torch::jit::Code> ArchiveGraph::Program(const Key& key) const {
  absl::MutexLock lock(&mutex_);
  if (const auto found = programs_.find(key); found != programs_.end()) return found->second;
  const std::shared_ptr<Graph> graph = graph_->copy();
  const std::vector<Node*> body(graph->nodes().begin(), graph->nodes().end());
  while (!graph->outputs().empty()) graph->eraseOutput(graph->outputs().size() - 1);
  const Tap* const start = key.first.empty() ? nullptr : Find(key.first);
  if (start != nullptr) {
    Value* const value = body[start->node]->output(start->output);
    Value* const given = graph->addInput("start");
    given->setType(value->type());
    value->replaceAllUsesWith(given);
  }
  size_t last = 0;
  std::vector<const Value*> wanted;
  for (const std::string& path : key.second) {
    const Tap* const tap = Find(path);
    last = std::max(last, tap->node);
    Value* const value = body[tap->node]->output(tap->output);
    wanted.push_back(value);
    graph->registerOutput(value);
  }
  const Dependence needed(*graph, wanted, nullptr);
  if (start != nullptr && needed.on_image) {
    return absl::InvalidArgumentError(
        StrCat("what was asked for does not depend on '", key.first, "' alone: a tap lies before it"));
  }
  // Without a start everything up to the last tap stays that changes something (counters of batch norms). With one,
  // what is not needed goes when it belongs to the part that does not run.
  std::unordered_set<const Node*> gone;
  for (size_t i = 0; i < body.size(); ++i) {
    if (needed.nodes.contains(body[i])) continue;
    bool leave_out = i > last || (start != nullptr && i <= start->node);
    if (start != nullptr) {
      ForEachInput(body[i], [&](const Value* input) {
        leave_out = leave_out || gone.contains(input->node()) || input == graph->inputs().at(1);
      });
    }
    if (leave_out) gone.insert(body[i]);
  }
  for (size_t i = body.size(); i-- > 0;) {
    if (gone.contains(body[i])) body[i]->destroy();
  }
  torch::jit::EliminateDeadCode(graph);
  return programs_.emplace(key, torch::jit::Code(graph, "forward")).first->second;
}

StatusOr<std::vector<torch::Tensor>> ArchiveGraph::Run(const torch::jit::Module& module, const torch::Tensor& x,
                                                       const std::string& start,
                                                       const std::vector<std::string>& taps) const {
  DISTILL_ASSIGN_OR_RETURN(const torch::jit::Code program, Program({start, taps}));
  torch::jit::Stack stack = {module._ivalue(), x};
  if (!start.empty()) stack.emplace_back(x);
  torch::jit::InterpreterState(program).run(stack);
  std::vector<torch::Tensor> values;
  for (c10::IValue& value : stack) values.push_back(value.toTensor());
  return values;
}

}  // namespace distill
