#include "common/zoo/model_file.h"

#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/hash/sha256.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr uint32_t kMaxImageSide = 8192;          // pixels
constexpr uintmax_t kMaxSidecarBytes = 64 << 10;  // those in use have some hundred

bool IsModelName(std::string_view name) {
  auto is_alnum = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= 63 && is_alnum(name.front()) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return is_alnum(c) || c == '.' || c == '_' || c == '-'; });
}

StatusOr<uint32_t> Positive(const std::string& text, std::string_view key, uint32_t max) {
  uint32_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 1 || value > max) {
    return absl::InvalidArgumentError(StrCat(key, ": '", text, "' is not a whole number in 1..", max));
  }
  return value;
}

StatusOr<std::vector<float>> Floats(const YAML::Node& node, std::string_view key) {
  const auto wrong = absl::InvalidArgumentError(StrCat(key, ": must be a list of numbers, one per channel"));
  if (!node.IsSequence()) return wrong;
  std::vector<float> values;
  for (const YAML::Node& item : node) {
    float value = 0;
    if (!item.IsScalar() || !absl::SimpleAtof(item.Scalar(), &value) || !std::isfinite(value)) return wrong;
    values.push_back(value);
  }
  return values;
}

StatusOr<std::vector<std::string>> Names(const YAML::Node& node, std::string_view key) {
  std::vector<std::string> names;
  for (size_t i = 0; node.IsSequence() && i < node.size() && node[i].IsScalar(); ++i) names.push_back(node[i].Scalar());
  if (node.IsSequence() && names.size() == node.size()) return names;
  return absl::InvalidArgumentError(StrCat(key, ": must be a list of taps"));
}

// {layer1: [64, 56, 56], ...}
StatusOr<std::map<std::string, TapShape>> Shapes(const YAML::Node& node) {
  const auto wrong =
      absl::InvalidArgumentError("taps: must be a mapping of taps to their shapes, as in layer1: [64, 56, 56]");
  if (!node.IsMap()) return wrong;
  std::map<std::string, TapShape> shapes;
  for (const auto& entry : node) {
    if (!entry.first.IsScalar() || !entry.second.IsSequence()) return wrong;
    TapShape& shape = shapes[entry.first.Scalar()];
    for (const YAML::Node& axis : entry.second) {
      if (!axis.IsScalar()) return wrong;
      DISTILL_ASSIGN_OR_RETURN(const uint32_t size, Positive(axis.Scalar(), "taps", 1u << 30));
      shape.push_back(size);
    }
  }
  return shapes;
}

StatusOr<ModelSidecar> ParseSidecar(const YAML::Node& root, bool torchscript) {
  static const std::vector<std::string> kKeys = {"arch", "width", "num_classes", "in_channels", "image",
                                                 "mean", "std",   "digest",      "stages",      "taps"};
  ModelSidecar sidecar;
  ModelSpec& spec = sidecar.spec;
  if (!root.IsMap())
    return absl::InvalidArgumentError("must be a mapping of arch, num_classes, in_channels, image, mean, std");
  std::set<std::string> seen;
  for (const auto& entry : root) {
    if (!entry.first.IsScalar()) return absl::InvalidArgumentError("keys must be plain words");
    const std::string key = entry.first.Scalar();
    const YAML::Node& value = entry.second;
    if (!seen.insert(key).second) return absl::InvalidArgumentError(StrCat(key, ": given twice"));
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
      return absl::InvalidArgumentError(
          StrCat("unknown key '", key, "'", DidYouMean(key, kKeys), " (known: ", absl::StrJoin(kKeys, ", "), ")"));
    }
    if (!torchscript && (key == "digest" || key == "stages" || key == "taps")) {
      return absl::InvalidArgumentError(StrCat(key, ": belongs to the description of an archive (*.pt); leave it out"));
    }
    if (key == "stages") {
      DISTILL_ASSIGN_OR_RETURN(sidecar.stages, Names(value, key));
      continue;
    }
    if (key == "taps") {
      DISTILL_ASSIGN_OR_RETURN(sidecar.taps, Shapes(value));
      continue;
    }
    if (key == "mean" || key == "std") {
      DISTILL_ASSIGN_OR_RETURN((key == "mean" ? spec.mean : spec.std), Floats(value, key));
      continue;
    }
    if (key == "image") {
      std::vector<std::string> sides;
      if (value.IsScalar()) sides = absl::StrSplit(value.Scalar(), 'x');
      for (size_t i = 0; value.IsSequence() && i < value.size() && value[i].IsScalar(); ++i) {
        sides.push_back(value[i].Scalar());
      }
      if (sides.size() != 2 || (value.IsSequence() && value.size() != 2)) {
        const std::string got = value.IsScalar() ? StrCat("'", value.Scalar(), "'") : "this";
        return absl::InvalidArgumentError(
            StrCat("image: ", got, " is not HEIGHTxWIDTH, as in 224x224, nor [HEIGHT, WIDTH]"));
      }
      DISTILL_ASSIGN_OR_RETURN(spec.image_height, Positive(sides[0], "image height", kMaxImageSide));
      DISTILL_ASSIGN_OR_RETURN(spec.image_width, Positive(sides[1], "image width", kMaxImageSide));
      continue;
    }
    if (!value.IsScalar()) return absl::InvalidArgumentError(StrCat(key, ": must be a single value"));
    const std::string text = value.Scalar();
    if (key == "digest") {
      sidecar.digest = text;
    } else if (key == "arch") {
      spec.arch = text;
    } else if (key == "width") {
      DISTILL_ASSIGN_OR_RETURN(spec.width, Positive(text, key, 1 << 16));
    } else if (key == "num_classes") {
      DISTILL_ASSIGN_OR_RETURN(spec.num_classes, Positive(text, key, 1 << 24));
    } else {  // in_channels
      DISTILL_ASSIGN_OR_RETURN(spec.in_channels, Positive(text, key, 1 << 10));
    }
  }
  if (torchscript) {
    if (spec.arch.empty()) spec.arch = "torchscript";
    if (spec.arch != "torchscript") {
      return absl::InvalidArgumentError(
          StrCat("arch: '", spec.arch, "', but the file is a TorchScript archive; leave arch out"));
    }
  } else if (spec.arch.empty() || spec.arch == "torchscript") {
    return absl::InvalidArgumentError("arch: must name a zoo architecture, as in resnet50");
  }
  return sidecar;
}

std::string NoModelName(const std::string& name, const std::string& path) {
  return StrCat("'", name, "' (for ", path,
                ") is not a model name: letters, digits, '.', '_', '-', at most 63, the first a letter or digit");
}

// Every *.pt in the folder, and every *.safetensors unless only archives count; sorted; not those whose name begins
// with a dot.
StatusOr<std::vector<std::string>> ListModels(const std::string& folder, bool only_archives) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::string> paths;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string path = it->path().string();
    if (it->path().filename().string().starts_with('.')) continue;
    if ((path.ends_with(".safetensors") && !only_archives) || IsTorchScriptFile(path)) paths.push_back(path);
  }
  if (error) return absl::NotFoundError(StrCat("--models '", folder, "': ", error.message()));
  if (paths.empty() && !only_archives)
    return absl::InvalidArgumentError(StrCat("--models '", folder, "': no *.safetensors or *.pt file in this folder"));
  std::sort(paths.begin(), paths.end());
  return paths;
}

// `path_of`: the files that flags name.
void AddFromFolder(const std::vector<std::string>& paths, const std::map<std::string, std::string>& path_of,
                   ModelFiles* found) {
  namespace fs = std::filesystem;
  std::map<std::string, int> count;
  for (const std::string& path : paths) ++count[fs::path(path).stem().string()];
  for (const std::string& path : paths) {
    const std::string name = fs::path(path).stem().string();
    std::error_code error;
    if (!IsModelName(name)) {
      found->left_out.push_back(NoModelName(name, path));
    } else if (const auto flagged = path_of.find(name); flagged != path_of.end()) {
      found->left_out.push_back(StrCat(path, ": --model names another file '", name, "', ", flagged->second));
    } else if (count[name] > 1) {
      found->left_out.push_back(
          StrCat(path, ": two files of this folder are named '", name, "'; give one another name"));
    } else if (!fs::is_regular_file(path, error)) {
      found->left_out.push_back(StrCat(path, ": ", error ? error.message() : "not a regular file"));
    } else {
      found->files.push_back({name, path, /*required=*/false});
    }
  }
}

// The only document of the text; empty ones, which separators alone make, do not count.
StatusOr<YAML::Node> OnlyDocument(const std::string& text) {
  YAML::Node found;
  bool any = false;
  for (const YAML::Node& document : YAML::LoadAll(text)) {
    if (document.IsNull()) continue;
    if (any) {
      return absl::InvalidArgumentError(StrCat("line ", document.Mark().line + 1,
                                               ": a second YAML document begins here; the file holds exactly one"));
    }
    found = document;
    any = true;
  }
  return found;
}

}  // namespace

StatusOr<ModelFiles> CollectArchives(const std::string& folder) {
  DISTILL_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListModels(folder, /*only_archives=*/true));
  ModelFiles found;
  AddFromFolder(paths, {}, &found);
  return found;
}

StatusOr<ModelFiles> CollectModelFiles(const std::vector<std::string>& flags, const std::string& folder) {
  namespace fs = std::filesystem;
  ModelFiles found;
  std::map<std::string, std::string> path_of;  // by name
  for (const std::string& flag : flags) {
    const std::vector<std::string> parts = absl::StrSplit(flag, absl::MaxSplits('=', 1));
    if (parts.size() != 2 || parts[1].empty()) {
      return absl::InvalidArgumentError(
          StrCat("--model '", flag, "': must be NAME=FILE, as in fashion=models/teacher.safetensors"));
    }
    if (!IsModelName(parts[0])) return absl::InvalidArgumentError(NoModelName(parts[0], parts[1]));
    auto [entry, fresh] = path_of.emplace(parts[0], parts[1]);
    if (!fresh) {
      return absl::InvalidArgumentError(StrCat("two models are named '", parts[0], "': ", entry->second, " and ",
                                               parts[1], "; give one another name"));
    }
    found.files.push_back({parts[0], parts[1], /*required=*/true});
  }
  if (!folder.empty()) {
    DISTILL_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListModels(folder, /*only_archives=*/false));
    AddFromFolder(paths, path_of, &found);
    if (found.files.empty()) {
      return absl::InvalidArgumentError(
          StrCat("--models '", folder, "': none of its files can be served: ", absl::StrJoin(found.left_out, "; ")));
    }
  }
  if (found.files.empty())
    return absl::InvalidArgumentError("nothing to serve: give --model NAME=FILE (repeatable) or --models FOLDER");
  return found;
}

bool IsTorchScriptFile(std::string_view path) { return path.ends_with(".pt"); }

StatusOr<std::optional<ModelSidecar>> ReadSidecar(const std::string& model_path) {
  const std::string path = model_path + ".yaml";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::optional<ModelSidecar>();
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::InvalidArgumentError(StrCat(path, ": ", error.message()));
  if (size > kMaxSidecarBytes) {
    return absl::InvalidArgumentError(
        StrCat(path, ": has ", size, " bytes; a description of a model has at most ", kMaxSidecarBytes));
  }
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) return absl::InvalidArgumentError(StrCat(path, ": cannot be read"));
  try {
    StatusOr<YAML::Node> root = OnlyDocument(text.str());
    if (!root.ok()) return Annotate(root.status(), path);
    StatusOr<ModelSidecar> sidecar = ParseSidecar(*root, IsTorchScriptFile(model_path));
    if (!sidecar.ok()) return Annotate(sidecar.status(), path);
    return std::optional<ModelSidecar>(*std::move(sidecar));
  } catch (const YAML::DeepRecursion&) {
    return absl::InvalidArgumentError(StrCat(path, ": not valid YAML: nested too deeply"));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(StrCat(path, ": not valid YAML: ", e.what()));
  }
}

Status CheckArchiveIsDescribed(const ModelSidecar& sidecar, const std::string& path, std::string_view bytes,
                               const std::vector<TapInfo>& found) {
  if (const std::string digest = Sha256Hex(bytes); !sidecar.digest.empty() && digest != sidecar.digest) {
    return absl::FailedPreconditionError(
        StrCat(path, ".yaml describes another archive: its digest is ", sidecar.digest.substr(0, 12), ", that of ",
               path, " is ", digest.substr(0, 12), "; export it again, or copy both files together"));
  }
  for (const auto& [name, shape] : sidecar.taps) {
    const auto tap = std::find_if(found.begin(), found.end(), [&](const TapInfo& one) { return one.path == name; });
    if (tap != found.end() && tap->shape == shape) continue;
    return absl::FailedPreconditionError(
        StrCat(path, ".yaml lists the tap '", name, "' as [", absl::StrJoin(shape, ", "), "], the archive ",
               tap == found.end() ? "has none of that name" : StrCat("gives [", absl::StrJoin(tap->shape, ", "), "]"),
               "; correct the line or leave it out"));
  }
  return OkStatus();
}

Status CheckImageSpec(const ModelSpec& spec, const std::string& path) {
  if (spec.in_channels == 0 || spec.image_height == 0 || spec.image_width == 0) {
    return absl::InvalidArgumentError(StrCat(
        path, ": in_channels and image (HEIGHTxWIDTH) must be given, in the file's metadata or in ", path, ".yaml"));
  }
  for (const auto* list : {&spec.mean, &spec.std}) {
    if (!list->empty() && list->size() != spec.in_channels) {
      return absl::InvalidArgumentError(StrCat(path, ": ", list == &spec.mean ? "mean" : "std", " has ", list->size(),
                                               " entries for ", spec.in_channels, " channels"));
    }
  }
  for (float value : spec.std) {
    if (!(value > 0))
      return absl::InvalidArgumentError(StrCat(path, ": std has the entry ", value, "; all must be above 0"));
  }
  return OkStatus();
}

}  // namespace distill
