#include "common/zoo/model_metadata.h"

#include <charconv>
#include <string_view>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/str_cat.h"

namespace distill {
namespace {

// Shortest text that reads back as the same float.
std::string JoinFloats(const std::vector<float>& values) {
  std::string text;
  for (float value : values) {
    char digits[32];
    const auto result = std::to_chars(digits, digits + sizeof digits, value);
    if (!text.empty()) text += ',';
    text.append(digits, result.ptr);
  }
  return text;
}

template <typename T>
bool ParseAll(std::string_view text, T* value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size();
}

class Reader {
 public:
  explicit Reader(const std::map<std::string, std::string>& metadata) : metadata_(metadata) {}

  StatusOr<std::string> Text(const std::string& key) const {
    const auto it = metadata_.find(key);
    if (it == metadata_.end()) {
      return absl::InvalidArgumentError(
          StrCat("model file has no metadata '", key,
                 "'; it was not written by Distillery: describe the model on the command line"));
    }
    return it->second;
  }
  StatusOr<uint32_t> Number(const std::string& key) const {
    DISTILL_ASSIGN_OR_RETURN(const std::string text, Text(key));
    uint32_t value = 0;
    if (!ParseAll(text, &value)) return Malformed(key, text);
    return value;
  }
  StatusOr<std::vector<float>> Floats(const std::string& key) const {
    DISTILL_ASSIGN_OR_RETURN(const std::string text, Text(key));
    std::vector<float> values;
    std::string_view rest = text;
    while (!rest.empty()) {
      const size_t comma = rest.find(',');
      float value = 0;
      if (!ParseAll(rest.substr(0, comma), &value)) return Malformed(key, text);
      values.push_back(value);
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
      if (rest.empty()) return Malformed(key, text);
    }
    return values;
  }
  static Status Malformed(const std::string& key, const std::string& text) {
    return absl::InvalidArgumentError(StrCat("model file: metadata '", key, "' is '", text, "', which cannot be read"));
  }

 private:
  const std::map<std::string, std::string>& metadata_;
};

}  // namespace

std::map<std::string, std::string> SpecToMetadata(const ModelSpec& spec) {
  return {{"format", "pt"},
          {"distill.arch", spec.arch},
          {"distill.width", StrCat(spec.width)},
          {"distill.num_classes", StrCat(spec.num_classes)},
          {"distill.in_channels", StrCat(spec.in_channels)},
          {"distill.image", StrCat(spec.image_height, "x", spec.image_width)},
          {"distill.mean", JoinFloats(spec.mean)},
          {"distill.std", JoinFloats(spec.std)}};
}

StatusOr<ModelSpec> SpecFromMetadata(const std::map<std::string, std::string>& metadata) {
  const Reader reader(metadata);
  ModelSpec spec;
  DISTILL_ASSIGN_OR_RETURN(spec.arch, reader.Text("distill.arch"));
  DISTILL_ASSIGN_OR_RETURN(spec.width, reader.Number("distill.width"));
  DISTILL_ASSIGN_OR_RETURN(spec.num_classes, reader.Number("distill.num_classes"));
  DISTILL_ASSIGN_OR_RETURN(spec.in_channels, reader.Number("distill.in_channels"));
  DISTILL_ASSIGN_OR_RETURN(const std::string image, reader.Text("distill.image"));
  const size_t x = image.find('x');
  if (x == std::string::npos || !ParseAll(std::string_view(image).substr(0, x), &spec.image_height) ||
      !ParseAll(std::string_view(image).substr(x + 1), &spec.image_width)) {
    return Reader::Malformed("distill.image", image);
  }
  DISTILL_ASSIGN_OR_RETURN(spec.mean, reader.Floats("distill.mean"));
  DISTILL_ASSIGN_OR_RETURN(spec.std, reader.Floats("distill.std"));
  return spec;
}

std::string CanonicalText(const ModelSpec& spec) {
  // Nine digits tell any two floats apart.
  auto list = [](const std::vector<float>& values) {
    return absl::StrJoin(values, ",", [](std::string* out, float value) { absl::StrAppendFormat(out, "%.9g", value); });
  };
  return StrCat("arch=", spec.arch, "\nwidth=", spec.width, "\nnum_classes=", spec.num_classes,
                "\nin_channels=", spec.in_channels, "\nimage=", spec.image_height, "x", spec.image_width,
                "\nmean=", list(spec.mean), "\nstd=", list(spec.std), "\n");
}

}  // namespace distill
