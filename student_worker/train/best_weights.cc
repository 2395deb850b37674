#include "student_worker/train/best_weights.h"

#include <cstdlib>
#include <string_view>

#include "absl/strings/str_format.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr std::string_view kPrefix = "best.";

}  // namespace

void BestWeights::AddTo(SafetensorsFile* file) const {
  if (model.tensors.empty()) return;
  for (const auto& [name, tensor] : model.tensors) file->tensors[StrCat(kPrefix, name)] = tensor;
  file->metadata["best_loss"] = absl::StrFormat("%.17g", loss);  // every bit: a resumed stage decides alike
  file->metadata["best_since"] = StrCat(since);
}

BestWeights BestWeights::TakeFrom(SafetensorsFile* file) {
  BestWeights best;
  for (auto it = file->tensors.begin(); it != file->tensors.end();) {
    if (it->first.starts_with(kPrefix)) {
      best.model.tensors[it->first.substr(kPrefix.size())] = it->second;
      it = file->tensors.erase(it);
    } else {
      ++it;
    }
  }
  if (best.model.tensors.empty()) return best;
  best.loss = std::strtod(file->metadata["best_loss"].c_str(), nullptr);
  best.since = static_cast<uint32_t>(std::strtoul(file->metadata["best_since"].c_str(), nullptr, 10));
  file->metadata.erase("best_loss");
  file->metadata.erase("best_since");
  return best;
}

}  // namespace distill
