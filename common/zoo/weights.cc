#include "common/zoo/weights.h"

#include <torch/torch.h>

#include <cstring>
#include <map>
#include <optional>

#include "common/zoo/weights_file.h"

namespace distill {
namespace {

// Parameters and buffers by name.
std::map<std::string, torch::Tensor> StateOf(const StudentNet& net) {
  std::map<std::string, torch::Tensor> state;
  for (StudentNet::StateTensor& one : net.State()) state.emplace(std::move(one.name), std::move(one.tensor));
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

}  // namespace

Status LoadWeights(const SafetensorsFile& file, StudentNet* net) {
  DISTILL_RETURN_IF_ERROR(CheckWeightsFit(file, net->architecture()));
  const std::vector<StateEntry> entries = net->architecture().StateDict();
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> state = StateOf(*net);
  for (const StateEntry& entry : entries) {
    const auto it = file.tensors.find(entry.name);
    torch::Tensor& target = state.at(entry.name);
    if (it == file.tensors.end()) {
      if (entry.name.ends_with("num_batches_tracked")) target.zero_();  // of an old file
      continue;
    }
    // Through a tensor of torch's own: bytes inside a file need not be aligned.
    const torch::Tensor source = torch::empty(entry.shape, *TorchDtype(it->second.dtype, entry.is_integer));
    if (it->second.bytes.size > 0) std::memcpy(source.data_ptr(), it->second.bytes.data, it->second.bytes.size);
    target.copy_(source);
  }
  return OkStatus();
}

SafetensorsFile SaveWeights(const StudentNet& net) {
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
