#include "coordinator/jobfile/yaml_override.h"

#include <span>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

StatusOr<YamlNodePtr> Replace(const YamlNodePtr& node, std::span<const std::string> path, const YamlNodePtr& value,
                              const YamlMark& mark) {
  if (path.empty()) return value;
  const std::string& part = path.front();
  auto copy = node == nullptr ? std::make_shared<YamlNode>() : std::make_shared<YamlNode>(*node);
  if (copy->kind == YamlNode::Kind::kNull) {
    copy->kind = YamlNode::Kind::kMap;
    copy->mark = mark;
  }
  if (copy->kind == YamlNode::Kind::kSequence) {
    uint32_t position = 0;
    if (!absl::SimpleAtoi(part, &position) || position >= copy->items.size()) {
      return absl::InvalidArgumentError(StrCat("'", Shorten(part), "' is no position in a list of ", copy->items.size(),
                                               " (positions count from 0)"));
    }
    DISTILL_ASSIGN_OR_RETURN(copy->items[position], Replace(copy->items[position], path.subspan(1), value, mark));
    return YamlNodePtr(copy);
  }
  if (copy->kind == YamlNode::Kind::kScalar) {
    return absl::InvalidArgumentError(
        StrCat("'", Shorten(part), "' leads into the plain value ", DescribeValue(*copy)));
  }
  for (YamlEntry& entry : copy->entries) {
    if (entry.key != part) continue;
    DISTILL_ASSIGN_OR_RETURN(entry.value, Replace(entry.value, path.subspan(1), value, mark));
    return YamlNodePtr(copy);
  }
  DISTILL_ASSIGN_OR_RETURN(YamlNodePtr made, Replace(nullptr, path.subspan(1), value, mark));
  copy->entries.push_back({part, mark, std::move(made)});
  return YamlNodePtr(copy);
}

}  // namespace

YamlNodePtr ApplyOverride(const YamlNodePtr& root, int index, Problems* problems) {
  const std::string& text = problems->source().overrides[index];
  const YamlMark mark{1, 1, index};
  const auto refuse = [&](std::string_view what) {
    problems->Add(mark, what);
    return nullptr;
  };
  const size_t equals = text.find('=');
  if (equals == std::string::npos) return refuse("expected PATH=VALUE, for example stages.1.steps=3");
  const std::vector<std::string> path = absl::StrSplit(text.substr(0, equals), '.');
  if (path.size() > 16) return refuse("the path has more than 16 parts");
  for (const std::string& part : path) {
    if (part.empty() || FirstInvalidByte(part) != std::string_view::npos) {
      return refuse("the path has an empty or unprintable part");
    }
  }
  const YamlNodePtr value = ParseYaml(text.substr(equals + 1), problems, index);
  if (value == nullptr) return nullptr;
  StatusOr<YamlNodePtr> replaced = Replace(root, path, value, mark);
  if (!replaced.ok()) return refuse(ToStd(replaced.status().message()));
  return *std::move(replaced);
}

}  // namespace distill
