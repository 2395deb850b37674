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
  const auto take = [file](const char* key, auto parse) {
    if (const auto found = file->metadata.find(key); found != file->metadata.end()) {
      parse(found->second.c_str());
      file->metadata.erase(found);
    }
  };
  take("best_loss", [&](const char* text) { best.loss = std::strtod(text, nullptr); });
  take("best_since", [&](const char* text) { best.since = static_cast<uint32_t>(std::strtoul(text, nullptr, 10)); });
  return best;
}

}  // namespace distill
