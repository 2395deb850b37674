#include "coordinator/jobfile/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "common/str_cat.h"
#include "coordinator/jobfile/problems.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

// Builds the tree from yaml-cpp's events. Refusals are thrown as yaml-cpp's own exception type, which ParseYaml()
// catches: the parser offers no other way to stop early.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(int override_index) : override_index_(override_index) {}

  YamlNodePtr root() const { return root_; }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnAnchor(const YAML::Mark&, const std::string&) override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Emit(Make(YamlNode::Kind::kNull, mark), mark, anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto found = anchors_.find(anchor);
    if (found == anchors_.end()) Refuse(mark, "an alias inside the value it stands for");
    Emit(found->second, mark, 0);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    auto node = Make(YamlNode::Kind::kScalar, mark);
    node->text = value;
    node->quoted = tag == "!";  // yaml-cpp's mark for quoted and block scalars; plain ones carry "?"
    if (!node->quoted && tag != "?" && !tag.empty()) Refuse(mark, StrCat("tags are not supported (", tag, ")"));
    if (!node->quoted && (value == "~" || value == "null" || value == "Null" || value == "NULL")) {
      node->kind = YamlNode::Kind::kNull;
    }
    Emit(std::move(node), mark, anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(YamlNode::Kind::kSequence, mark, tag, anchor);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(YamlNode::Kind::kMap, mark, tag, anchor);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct Level {
    std::shared_ptr<YamlNode> node;
    YAML::Mark mark;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
    std::string key;
    YamlMark key_mark;
    std::map<std::string, int> keys;  // seen so far, with their lines
  };

  [[noreturn]] static void Refuse(const YAML::Mark& mark, const std::string& text) {
    throw YAML::ParserException(mark, text);
  }

  std::shared_ptr<YamlNode> Make(YamlNode::Kind kind, const YAML::Mark& mark) const {
    auto node = std::make_shared<YamlNode>();
    node->kind = kind;
    node->mark = {mark.line + 1, mark.column + 1, override_index_};
    return node;
  }

  void Open(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (tag != "?" && !tag.empty() && tag != "!") Refuse(mark, StrCat("tags are not supported (", tag, ")"));
    if (open_.size() >= kMaxYamlDepth) Refuse(mark, StrCat("nested deeper than ", kMaxYamlDepth, " levels"));
    Level level;
    level.node = Make(kind, mark);
    level.mark = mark;
    level.anchor = anchor;
    open_.push_back(std::move(level));
  }

  void Close() {
    Level level = std::move(open_.back());
    open_.pop_back();
    Emit(std::move(level.node), level.mark, level.anchor);
  }

  void Emit(YamlNodePtr node, const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (++nodes_ > kMaxYamlNodes) Refuse(mark, StrCat("more than ", kMaxYamlNodes, " values"));
    if (anchor != 0) anchors_[anchor] = node;
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = open_.back();
    if (level.node->kind == YamlNode::Kind::kMap && !level.has_key) {
      TakeKey(*node, mark, level);
      return;
    }
    level.node->expanded_size += node->expanded_size;
    level.node->expanded_depth = std::max(level.node->expanded_depth, node->expanded_depth + 1);
    if (level.node->expanded_size > kMaxYamlNodes) {
      Refuse(mark, StrCat("aliases expand to more than ", kMaxYamlNodes, " values"));
    }
    if (level.node->expanded_depth > kMaxYamlDepth) {
      Refuse(mark, StrCat("nested deeper than ", kMaxYamlDepth, " levels"));
    }
    if (level.node->kind == YamlNode::Kind::kSequence) {
      level.node->items.push_back(std::move(node));
    } else {
      level.node->entries.push_back({std::move(level.key), level.key_mark, std::move(node)});
      level.has_key = false;
    }
  }

  void TakeKey(const YamlNode& node, const YAML::Mark& mark, Level& level) {
    if (node.kind != YamlNode::Kind::kScalar) Refuse(mark, "a key must be a plain name");
    if (node.text == "<<" && !node.quoted) {
      Refuse(mark, "merge keys ('<<') are not supported; write the fields out, or refer to a whole value by *alias");
    }
    auto [seen, inserted] = level.keys.emplace(node.text, mark.line + 1);
    if (!inserted) Refuse(mark, StrCat("duplicate key '", Shorten(node.text), "' (first in line ", seen->second, ")"));
    level.has_key = true;
    level.key = node.text;
    level.key_mark = {mark.line + 1, mark.column + 1, override_index_};
  }

  const int override_index_;
  size_t nodes_ = 0;
  YamlNodePtr root_;
  std::vector<Level> open_;
  std::map<YAML::anchor_t, YamlNodePtr> anchors_;
};

}  // namespace

YamlNodePtr YamlNode::Find(std::string_view key) const {
  for (const YamlEntry& entry : entries) {
    if (entry.key == key) return entry.value;
  }
  return nullptr;
}

std::string YamlSource::Describe(const YamlMark& mark) const {
  if (mark.override_index >= 0) {
    const size_t index = static_cast<size_t>(mark.override_index);
    return StrCat("override '", index < overrides.size() ? Shorten(overrides[index]) : "?", "'");
  }
  return StrCat(file_name, ":", std::max(mark.line, 1), ":", std::max(mark.column, 1));
}

YamlNodePtr ParseYaml(std::string_view text, Problems* problems, int override_index) {
  const auto refuse = [&](int line, int column, std::string_view what) {
    problems->Add({line, column, override_index}, what);
    return nullptr;
  };
  if (text.size() > kMaxYamlBytes) {
    return refuse(1, 1, StrCat("the file has ", text.size(), " bytes; at most ", kMaxYamlBytes, " are read"));
  }
  if (const size_t bad = FirstInvalidByte(text); bad != std::string_view::npos) {
    const std::string_view before = text.substr(0, bad);
    const size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
    return refuse(static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1,
                  static_cast<int>(bad - line_start) + 1,
                  StrCat("byte ", static_cast<uint8_t>(text[bad]),
                         " is neither UTF-8 nor a printable character; save the file as UTF-8"));
  }
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    YamlNodePtr root;
    while (true) {
      TreeBuilder builder(override_index);
      if (!parser.HandleNextDocument(builder)) break;
      // "---" and "..." at the end, or twice at the start, delimit documents with nothing in them.
      if (builder.root() == nullptr || builder.root()->kind == YamlNode::Kind::kNull) continue;
      if (root != nullptr) {
        const YamlMark at = builder.root()->mark;
        return refuse(at.line, at.column, "a second YAML document begins here; a job file holds exactly one");
      }
      root = builder.root();
    }
    if (root != nullptr) return root;
    auto empty = std::make_shared<YamlNode>();
    empty->mark = {1, 1, override_index};
    return empty;
  } catch (const YAML::Exception& error) {
    return refuse(error.mark.line + 1, error.mark.column + 1, error.msg);
  } catch (const std::exception& error) {
    return refuse(1, 1, StrCat("cannot be read as YAML: ", error.what()));
  }
}

std::string DescribeValue(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return StrCat("'", Shorten(node.text), "'");
    case YamlNode::Kind::kSequence:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
  }
  return "?";
}

}  // namespace distill
