#include "student_worker/train/trainable_set.h"

#include <torch/torch.h>

#include <algorithm>

#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<std::vector<NamedTensor>> ApplyTrainable(StudentNet* net, const std::vector<std::string>& trainable,
                                                  bool frozen_bn_trains) {
  net->SetTraining("", false);
  std::vector<StudentNet::StateTensor> state = net->State();
  std::erase_if(state, [](const StudentNet::StateTensor& one) { return one.is_buffer; });
  for (StudentNet::StateTensor& parameter : state) {
    parameter.tensor.requires_grad_(false);
    parameter.tensor.mutable_grad() = torch::Tensor();
  }
  const std::vector<std::string> paths = net->architecture().ModulePaths();
  for (const std::string& path : trainable) {
    if (!path.empty() && std::find(paths.begin(), paths.end(), path) == paths.end()) {
      return absl::InvalidArgumentError(StrCat("the student has no module '", path, "'", DidYouMean(path, paths)));
    }
  }
  if (frozen_bn_trains) net->SetTraining("", true);
  for (const std::string& path : trainable) net->SetTraining(path, true);
  std::vector<NamedTensor> parameters;
  for (StudentNet::StateTensor& parameter : state) {
    const bool trains = std::any_of(trainable.begin(), trainable.end(),
                                    [&](const std::string& path) { return IsUnder(parameter.name, path); });
    parameter.tensor.requires_grad_(trains);
    if (trains) parameters.push_back({parameter.name, parameter.tensor});
  }
  return parameters;
}

EvalModeGuard::EvalModeGuard(StudentNet* net) : net_(net), modes_(net->Modes()) { net->SetTraining("", false); }

EvalModeGuard::~EvalModeGuard() { net_->SetModes(modes_); }

}  // namespace distill
