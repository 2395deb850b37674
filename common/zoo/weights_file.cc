#include "common/zoo/weights_file.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/zoo/file_kind.h"

namespace distill {
namespace {

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

bool IsFloatDtype(const std::string& dtype) {
  return dtype == "F32" || dtype == "F16" || dtype == "BF16" || dtype == "F64";
}

// What stands before the architecture's first name that occurs in the file behind a prefix; the shortest such prefix.
// "" when a name occurs without one, or none does.
std::string FindPrefix(const SafetensorsFile& file, const std::vector<StateEntry>& entries) {
  for (const StateEntry& entry : entries) {
    if (file.tensors.contains(entry.name)) return "";
  }
  for (const StateEntry& entry : entries) {
    const std::string suffix = StrCat(".", entry.name);
    const std::string* shortest = nullptr;
    for (const auto& [name, tensor] : file.tensors) {
      if (name.ends_with(suffix) && (shortest == nullptr || name.size() < shortest->size())) shortest = &name;
    }
    if (shortest != nullptr) return shortest->substr(0, shortest->size() - entry.name.size());
  }
  return "";
}

// The end of the message: what to do about names that do not fit.
std::string Remedy(const SafetensorsFile& file, const std::vector<StateEntry>& entries, const std::string& unexpected) {
  if (unexpected.starts_with("backbone.") || unexpected.starts_with("aux_classifier.")) {
    return "take the prefix 'backbone.' from the names of torchvision's file and leave out its aux_classifier";
  }
  const std::string prefix = FindPrefix(file, entries);
  const bool fits = !prefix.empty() && std::all_of(entries.begin(), entries.end(), [&](const StateEntry& entry) {
    return entry.is_integer || file.tensors.contains(prefix + entry.name);
  });
  if (!fits) return "check arch, width, classes and channels of the model";
  const auto count = std::count_if(file.tensors.begin(), file.tensors.end(),
                                   [&](const auto& named) { return named.first.starts_with(prefix); });
  return StrCat(count, " of the ", file.tensors.size(), " names begin with '", prefix,
                "', and behind it they are those of the network; save only these, without it: {k.removeprefix('",
                prefix, "'): v for k, v in tensors.items() if k.startswith('", prefix, "')}");
}

}  // namespace

std::string StripWrapperPrefix(SafetensorsFile* file, const Architecture& arch) {
  const std::string prefix = FindPrefix(*file, arch.StateDict());
  const bool everywhere =
      !prefix.empty() && std::all_of(file->tensors.begin(), file->tensors.end(),
                                     [&](const auto& named) { return named.first.starts_with(prefix); });
  // `backbone.` of torchvision's segmentation networks is a part of the network, not a wrapper around it.
  if (!everywhere || prefix == "backbone.") return "";
  std::map<std::string, SafeTensor> plain;
  for (auto& [name, tensor] : file->tensors) plain.emplace(name.substr(prefix.size()), std::move(tensor));
  file->tensors = std::move(plain);
  return prefix;
}

StatusOr<SafetensorsFile> ReadWeightsFile(const std::string& path, const Architecture& arch) {
  DISTILL_RETURN_IF_ERROR(CheckModelFile(path, ModelFormat::kWeights));
  DISTILL_ASSIGN_OR_RETURN(SafetensorsFile file, ReadSafetensors(path));
  if (const std::string prefix = StripWrapperPrefix(&file, arch); !prefix.empty()) {
    LogInfo("every tensor's name begins with a wrapper's prefix, which is left out",
            {{"file", path}, {"prefix", prefix}, {"tensors", file.tensors.size()}});
  }
  return file;
}

Status CheckWeightsFit(const SafetensorsFile& file, const Architecture& arch) {
  const std::vector<StateEntry> entries = arch.StateDict();
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
    } else if (entry.is_integer ? tensor.dtype != "I64" : !IsFloatDtype(tensor.dtype)) {
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
  if (problems.empty()) return OkStatus();
  return absl::FailedPreconditionError(StrCat("weights do not fit ", arch.spec().arch, " with ", entries.size(),
                                              " entries: ", problems, "; ", Remedy(file, entries, unexpected.first)));
}

}  // namespace distill
