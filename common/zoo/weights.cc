#include "common/zoo/weights.h"

#include <torch/torch.h>

#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "common/str_cat.h"

namespace distill {
namespace {

// Parameters and buffers by name.
std::map<std::string, torch::Tensor> StateOf(const ZooNet& net) {
  std::map<std::string, torch::Tensor> state;
  for (const auto& item : net.named_parameters()) state.emplace(item.key(), item.value());
  for (const auto& item : net.named_buffers()) state.emplace(item.key(), item.value());
  return state;
}

std::optional<torch::ScalarType> TorchDtype(const std::string& dtype, bool integer) {
  if (integer) return dtype == "I64" ? std::optional(torch::kInt64) : std::nullopt;
  if (dtype == "F32") return torch::kFloat32;
  if (dtype == "F16") return torch::kFloat16;
  if (dtype == "BF16") return torch::kBFloat16;
  if (dtype == "F64") return torch::kFloat64;
  return std::nullopt;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) StrAppend(&text, i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

// Counts misfits of one sort and remembers the first.
struct Misfit {
  size_t count = 0;
  std::string first;
  void Add(const std::string& what) {
    if (count++ == 0) first = what;
  }
  void Describe(std::string_view sort, std::string* text) const {
    if (count > 0) StrAppend(text, text->empty() ? "" : ", ", count, " ", sort, " (first: ", first, ")");
  }
};

}  // namespace

Status LoadWeights(const SafetensorsFile& file, ZooNet* net) {
  const std::vector<StateEntry> entries = net->architecture().StateDict();
  Misfit missing, unexpected, shapes, dtypes;
  std::set<std::string> known;
  for (const StateEntry& entry : entries) {
    known.insert(entry.name);
    const auto it = file.tensors.find(entry.name);
    if (it == file.tensors.end()) {
      if (!entry.is_integer) missing.Add(entry.name);
      continue;
    }
    const SafeTensor& tensor = it->second;
    if (tensor.shape != entry.shape) {
      shapes.Add(StrCat(entry.name, " is ", ShapeText(tensor.shape), ", needs ", ShapeText(entry.shape)));
    } else if (!TorchDtype(tensor.dtype, entry.is_integer)) {
      dtypes.Add(StrCat(entry.name, " is ", tensor.dtype));
    }
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (!known.contains(name)) unexpected.Add(name);
  }
  std::string problems;
  missing.Describe("missing", &problems);
  unexpected.Describe("unexpected", &problems);
  shapes.Describe("of another shape", &problems);
  dtypes.Describe("of another dtype", &problems);
  if (!problems.empty()) {
    const bool prefixed = unexpected.first.starts_with("backbone.") || unexpected.first.starts_with("aux_classifier.");
    return absl::FailedPreconditionError(StrCat(
        "weights do not fit ", net->architecture().spec().arch, " with ", entries.size(), " entries: ", problems,
        prefixed ? "; take the prefix 'backbone.' from the names of torchvision's file and leave out its aux_classifier"
                 : "; check arch, width, classes and channels of the model"));
  }

  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> state = StateOf(*net);
  for (const StateEntry& entry : entries) {
    const auto it = file.tensors.find(entry.name);
    torch::Tensor& target = state.at(entry.name);
    if (it == file.tensors.end()) {
      target.zero_();  // num_batches_tracked of an old file
      continue;
    }
    // Through a tensor of torch's own: bytes inside a file need not be aligned.
    const torch::Tensor source = torch::empty(entry.shape, *TorchDtype(it->second.dtype, entry.is_integer));
    if (it->second.bytes.size > 0) std::memcpy(source.data_ptr(), it->second.bytes.data, it->second.bytes.size);
    target.copy_(source);
  }
  return OkStatus();
}

SafetensorsFile SaveWeights(const ZooNet& net) {
  SafetensorsFile file;
  file.metadata = SpecToMetadata(net.architecture().spec());
  const std::map<std::string, torch::Tensor> state = StateOf(net);
  for (const StateEntry& entry : net.architecture().StateDict()) {
    const torch::Tensor copy = torch::empty(entry.shape, entry.is_integer ? torch::kInt64 : torch::kFloat32)
                                   .copy_(state.at(entry.name).detach());
    const auto owner = std::make_shared<const torch::Tensor>(copy);
    file.tensors[entry.name] = {entry.is_integer ? "I64" : "F32", entry.shape,
                                Buffer{static_cast<const uint8_t*>(owner->data_ptr()), owner->nbytes(), owner}};
  }
  return file;
}

}  // namespace distill
