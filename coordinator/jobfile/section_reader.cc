#include "coordinator/jobfile/section_reader.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

// Digits, a point, an exponent; not what strtod() takes beside them: "0x1", "inf", "nan".
bool IsDecimal(std::string_view text) { return text.find_first_not_of("0123456789+-.eE") == std::string_view::npos; }

// YAML 1.1 reads 010 as eight, YAML 1.2 as ten. "" unless `text` is such a number.
std::string DigitsProblem(std::string_view text) {
  const std::string_view digits = text.substr(text.starts_with('-') || text.starts_with('+') ? 1 : 0);
  if (digits.size() < 2 || digits[0] != '0' || digits.find_first_not_of("0123456789") != std::string_view::npos) {
    return "";
  }
  const size_t first = std::min(digits.find_first_not_of('0'), digits.size() - 1);
  return StrCat("'", Shorten(text), "' could be read as octal; write ", Shorten(digits.substr(first)));
}

}  // namespace

bool NumberRange::Contains(double value) const {
  if (!std::isfinite(value)) return false;
  const bool above = minimum_exclusive ? value > minimum : value >= minimum;
  const bool below = maximum_exclusive ? value < maximum : value <= maximum;
  return above && below;
}

std::string NumberRange::Describe() const {
  if (maximum >= 1e18) return StrCat(minimum_exclusive ? "> " : ">= ", minimum);
  return StrCat("in ", minimum_exclusive ? "(" : "[", minimum, ", ", maximum, maximum_exclusive ? ")" : "]");
}

SectionReader::SectionReader(YamlNodePtr node, std::string path, KeyList keys, Problems* problems)
    : SectionReader(std::move(node), std::move(path), std::vector<std::string>(keys.begin(), keys.end()), problems) {}

SectionReader::SectionReader(YamlNodePtr node, std::string path, std::vector<std::string> keys, Problems* problems)
    : path_(std::move(path)), problems_(problems) {
  if (node == nullptr) return;
  mark_ = node->mark;
  if (node->kind != YamlNode::Kind::kMap) {
    problems_->Add(node->mark, StrCat(path_.empty() ? "the job file" : path_, ": expected a map of keys, got ",
                                      DescribeValue(*node)));
    return;
  }
  node_ = std::move(node);
  for (const YamlEntry& entry : node_->entries) {
    bool known = false;
    for (const std::string& key : keys) known = known || key == entry.key;
    if (known) continue;
    problems_->Add(entry.key_mark, StrCat("unknown key '", Shorten(entry.key), "'", path_.empty() ? "" : " in ", path_,
                                          DidYouMean(entry.key, keys)));
  }
}

YamlMark SectionReader::mark() const { return mark_; }

YamlNodePtr SectionReader::Find(std::string_view key) const {
  YamlNodePtr found = node_ == nullptr ? nullptr : node_->Find(key);
  const bool taken_away = found != nullptr && found->kind == YamlNode::Kind::kNull && found->mark.override_index >= 0;
  return taken_away ? nullptr : found;
}

YamlMark SectionReader::Mark(std::string_view key) const {
  const YamlNodePtr found = Find(key);
  return found == nullptr ? mark_ : found->mark;
}

std::string SectionReader::Name(std::string_view key) const {
  return path_.empty() ? std::string(key) : StrCat(path_, ".", key);
}

void SectionReader::Problem(std::string_view key, std::string_view text) const {
  problems_->Add(Mark(key), StrCat(Name(key), ": ", text));
}

bool SectionReader::Require(std::string_view key) const {
  if (Has(key)) return true;
  problems_->Add(mark_, StrCat("missing required key '", key, "'", path_.empty() ? "" : " in ", path_));
  return false;
}

bool SectionReader::TextAt(const YamlNode& node, std::string_view name, std::string* out) const {
  if (node.kind != YamlNode::Kind::kScalar) {
    problems_->Add(node.mark, StrCat(name, ": expected a text, got ", DescribeValue(node)));
    return false;
  }
  *out = node.text;
  return true;
}

bool SectionReader::NumberAt(const YamlNode& node, std::string_view name, const NumberRange& range, double* out) const {
  double value = 0;
  if (node.kind != YamlNode::Kind::kScalar || node.quoted || !IsDecimal(node.text) ||
      !absl::SimpleAtod(node.text, &value)) {
    problems_->Add(node.mark,
                   StrCat(name, ": expected a number, got ", DescribeValue(node), node.quoted ? " in quotes" : ""));
    return false;
  }
  if (const std::string problem = DigitsProblem(node.text); !problem.empty()) {
    problems_->Add(node.mark, StrCat(name, ": ", problem));
    return false;
  }
  if (!std::isfinite(value) || (value == 0 && node.text.find_first_of("123456789") < node.text.find_first_of("eE"))) {
    problems_->Add(node.mark, StrCat(name, ": ", Shorten(node.text), " cannot be held: magnitudes go from ",
                                     std::numeric_limits<double>::min(), " to ", std::numeric_limits<double>::max()));
    return false;
  }
  if (!range.Contains(value)) {
    problems_->Add(node.mark,
                   StrCat(name, ": ", Shorten(node.text), " is out of range; it must be ", range.Describe()));
    return false;
  }
  *out = value;
  return true;
}

bool SectionReader::Text(std::string_view key, std::string* out) const {
  const YamlNodePtr node = Find(key);
  return node != nullptr && TextAt(*node, Name(key), out);
}

bool SectionReader::Choice(std::string_view key, const std::vector<std::string>& choices, std::string* out) const {
  std::string text;
  if (!Text(key, &text)) return false;
  for (const std::string& choice : choices) {
    if (choice != text) continue;
    *out = text;
    return true;
  }
  Problem(key, StrCat("unknown value '", Shorten(text), "'", DidYouMean(text, choices), " (one of ",
                      absl::StrJoin(choices, ", "), ")"));
  return false;
}

bool SectionReader::Flag(std::string_view key, bool* out) const {
  const YamlNodePtr node = Find(key);
  if (node == nullptr) return false;
  if (node->kind == YamlNode::Kind::kScalar && !node->quoted) {
    if (absl::EqualsIgnoreCase(node->text, "true")) return *out = true, true;
    if (absl::EqualsIgnoreCase(node->text, "false")) return *out = false, true;
  }
  Problem(key, StrCat("expected true or false, got ", DescribeValue(*node), node->quoted ? " in quotes" : ""));
  return false;
}

bool SectionReader::Number(std::string_view key, const NumberRange& range, double* out) const {
  const YamlNodePtr node = Find(key);
  return node != nullptr && NumberAt(*node, Name(key), range, out);
}

bool SectionReader::Integer(std::string_view key, uint64_t minimum, uint64_t maximum, uint64_t* out) const {
  const YamlNodePtr node = Find(key);
  if (node == nullptr) return false;
  const bool plain = node->kind == YamlNode::Kind::kScalar && !node->quoted;
  if (const std::string problem = plain ? DigitsProblem(node->text) : ""; !problem.empty()) {
    Problem(key, problem);
    return false;
  }
  uint64_t value = 0;
  if (plain && absl::SimpleAtoi(node->text, &value)) {
    if (value >= minimum && value <= maximum) return *out = value, true;
    Problem(key, StrCat(value, " is out of range; it must be in [", minimum, ", ", maximum, "]"));
    return false;
  }
  int64_t negative = 0;
  if (plain && absl::SimpleAtoi(node->text, &negative)) {
    Problem(key, StrCat(negative, " is out of range; it must be in [", minimum, ", ", maximum, "]"));
  } else {
    Problem(key, StrCat("expected a whole number, got ", DescribeValue(*node), node->quoted ? " in quotes" : ""));
  }
  return false;
}

bool SectionReader::Integer(std::string_view key, uint64_t minimum, uint64_t maximum, uint32_t* out) const {
  uint64_t wide = 0;
  if (!Integer(key, minimum, maximum, &wide)) return false;
  *out = static_cast<uint32_t>(wide);
  return true;
}

bool SectionReader::ByteSize(std::string_view key, uint64_t minimum, uint64_t maximum, uint64_t* out) const {
  std::string text;
  if (!Text(key, &text)) return false;
  uint64_t value = 0;
  if (!ParseByteSize(text, &value)) {
    Problem(key, StrCat("expected a size such as 64MiB (units B, KiB, MiB, GiB), got '", Shorten(text), "'"));
    return false;
  }
  if (value < minimum || value > maximum) {
    Problem(key, StrCat("'", Shorten(text), "' is out of range; it must be in [", minimum, ", ", maximum, "] bytes"));
    return false;
  }
  *out = value;
  return true;
}

bool SectionReader::Numbers(std::string_view key, const NumberRange& range, std::vector<double>* out) const {
  const YamlNodePtr node = Find(key);
  if (node == nullptr) return false;
  if (node->kind != YamlNode::Kind::kSequence) {
    Problem(key, StrCat("expected a list of numbers, got ", DescribeValue(*node)));
    return false;
  }
  std::vector<double> values;
  for (size_t i = 0; i < node->items.size(); ++i) {
    double value = 0;
    if (!NumberAt(*node->items[i], StrCat(Name(key), "[", i, "]"), range, &value)) return false;
    values.push_back(value);
  }
  *out = std::move(values);
  return true;
}

bool SectionReader::Texts(std::string_view key, std::vector<std::string>* out, std::vector<YamlMark>* marks) const {
  const YamlNodePtr node = Find(key);
  if (node == nullptr) return false;
  const std::vector<YamlNodePtr> items =
      node->kind == YamlNode::Kind::kSequence ? node->items : std::vector<YamlNodePtr>{node};
  std::vector<std::string> texts;
  std::vector<YamlMark> places;
  for (size_t i = 0; i < items.size(); ++i) {
    std::string text;
    if (!TextAt(*items[i], node->kind == YamlNode::Kind::kSequence ? StrCat(Name(key), "[", i, "]") : Name(key),
                &text)) {
      return false;
    }
    texts.push_back(std::move(text));
    places.push_back(items[i]->mark);
  }
  *out = std::move(texts);
  *marks = std::move(places);
  return true;
}

}  // namespace distill
