#include "teacher_server/inference_v2/served_model.h"

#include <algorithm>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "teacher_server/stream_limits.h"

namespace distill {

StatusOr<size_t> FindServedModel(const std::vector<TeacherModel>& models, const std::string& name,
                                 const std::string& version) {
  for (const std::string* text : {&name, &version}) {
    if (text->size() > kMaxNameBytes) {
      return absl::InvalidArgumentError(StrCat("the name or version of a model has ", text->size(), " bytes; at most ",
                                               kMaxNameBytes, " are allowed"));
    }
  }
  std::vector<std::string> names;
  for (size_t i = 0; i < models.size(); ++i) {
    if (models[i].served.name != name) {
      names.push_back(models[i].served.name);
      continue;
    }
    if (version.empty() || version == kModelVersion) return i;
    return absl::NotFoundError(
        StrCat("model '", name, "' has no version '", version, "'; ask for version ", kModelVersion, ", or for none"));
  }
  return absl::NotFoundError(StrCat("this teacher does not serve model '", name, "'", DidYouMean(name, names),
                                    " (served: ", NamesText(names), ")"));
}

std::string NamesText(const std::vector<std::string>& names) {
  constexpr size_t kMostBytes = 2000;
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    if (text.size() + names[i].size() > kMostBytes) {
      return StrCat(text, " and ", names.size() - i, " more, which ModelMetadata lists");
    }
    StrAppend(&text, i == 0 ? "" : ", ", names[i]);
  }
  return text;
}

std::vector<ModelOutput> OutputsOf(const TeacherModel& model) {
  std::string own = "output";
  while (std::any_of(model.taps.begin(), model.taps.end(), [&](const ServedTap& tap) { return tap.path == own; })) {
    own = "network_" + own;
  }
  std::vector<ModelOutput> outputs;
  if (!model.output_shape.empty()) outputs.push_back({own, "", model.output_shape});
  for (const ServedTap& tap : model.taps) {
    if (!tap.path.empty()) outputs.push_back({tap.path, tap.path, tap.shape});
  }
  return outputs;
}

}  // namespace distill
