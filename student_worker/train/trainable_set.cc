#include "student_worker/train/trainable_set.h"

#include <torch/torch.h>

#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<std::vector<NamedTensor>> ApplyTrainable(ZooNet* net, const std::vector<std::string>& trainable,
                                                  bool frozen_bn_trains) {
  net->eval();
  for (torch::Tensor& parameter : net->parameters()) {
    parameter.requires_grad_(false);
    parameter.mutable_grad() = torch::Tensor();
  }
  for (const std::string& path : trainable) {
    if (net->FindModule(path) == nullptr) {
      return absl::InvalidArgumentError(
          StrCat("the student has no module '", path, "'", DidYouMean(path, net->architecture().ModulePaths())));
    }
  }
  if (frozen_bn_trains) net->train();
  for (const std::string& path : trainable) {
    torch::nn::Module* module = net->FindModule(path);
    module->train();
    for (torch::Tensor& parameter : module->parameters()) parameter.requires_grad_(true);
  }
  std::vector<NamedTensor> parameters;
  for (const auto& item : net->named_parameters()) {
    if (item.value().requires_grad()) parameters.push_back({item.key(), item.value()});
  }
  return parameters;
}

EvalModeGuard::EvalModeGuard(ZooNet* net) {
  for (const std::shared_ptr<torch::nn::Module>& module : net->modules(/*include_self=*/false)) {
    if (module->is_training()) training_.push_back(module);
  }
  net->eval();
}

EvalModeGuard::~EvalModeGuard() {
  // Children are listed themselves: train(true) on a parent would switch the frozen ones on too.
  for (const std::shared_ptr<torch::nn::Module>& module : training_) {
    if (module->children().empty()) module->train(true);
  }
}

}  // namespace distill
