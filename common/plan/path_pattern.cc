#include "common/plan/path_pattern.h"

#include <algorithm>

#include "absl/strings/str_split.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr size_t kMaxBytes = 1024;

}  // namespace

std::optional<std::string> PathPattern::Part::Match(std::string_view name) const {
  if (!has_star_) return name == text_ ? std::optional<std::string>("") : std::nullopt;
  const std::string_view before = std::string_view(text_).substr(0, before_);
  const std::string_view after = std::string_view(text_).substr(before_ + 1);
  if (name.size() <= before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) {
    return std::nullopt;
  }
  return std::string(name.substr(before.size(), name.size() - before.size() - after.size()));
}

std::string PathPattern::Part::Fill(std::string_view star) const {
  return StrCat(text_.substr(0, before_), star, text_.substr(before_ + 1));
}

StatusOr<PathPattern> PathPattern::Parse(std::string_view text) {
  const auto wrong = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  if (text.empty()) return wrong("is empty");
  if (text.size() > kMaxBytes) return wrong(StrCat("has ", text.size(), " bytes; at most ", kMaxBytes));
  if (text.starts_with('/')) return wrong("is absolute; give a path below data.path");
  if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; })) {
    return wrong("holds a control character");
  }
  PathPattern pattern;
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(std::string(text), '/'))) {
    if (name.empty()) return wrong("has an empty part between two '/' or at its end");
    if (name == "." || name == "..") return wrong(StrCat("has a part '", name, "'; write the path without it"));
    Part part;
    part.text_ = name;
    const size_t stars = static_cast<size_t>(std::count(name.begin(), name.end(), '*'));
    if (name.find("**") != std::string::npos) {
      return wrong("has '**'; write a '*' for each folder");
    }
    if (stars > 1) {
      return wrong(StrCat("has ", stars, " stars in '", name, "'; one in each folder or file name is the most"));
    }
    if (stars == 1) {
      part.has_star_ = true;
      part.before_ = name.find('*');
      ++pattern.stars_;
    }
    pattern.parts_.push_back(std::move(part));
  }
  if (pattern.stars_ == 0) return wrong("has no '*', so that it names one file at most");
  return pattern;
}

std::string PathPattern::Fill(const std::vector<std::string>& stars) const {
  std::string path;
  size_t next = 0;
  for (const Part& part : parts_) {
    if (!path.empty()) path += '/';
    path += part.has_star() ? part.Fill(stars[next++]) : part.text();
  }
  return path;
}

}  // namespace distill
