// A YAML document as an immutable tree that remembers where each value stood: what the job file's reader works on.
//
// yaml-cpp does the scanning; the tree is built from its events, so that limits hold before anything is allocated on
// the word of the input: 1 MiB of text, 64 levels of nesting, 100,000 nodes after aliases are followed (an "alias bomb"
// is refused), one document (beside empty ones, as a "---" at the end makes them), no duplicate keys, no tags, no merge
// keys, valid UTF-8 without control characters.
#ifndef DISTILL_COORDINATOR_JOBFILE_YAML_TREE_H_
#define DISTILL_COORDINATOR_JOBFILE_YAML_TREE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace distill {

class Problems;

inline constexpr size_t kMaxYamlBytes = 1 << 20;
inline constexpr int kMaxYamlDepth = 64;
inline constexpr size_t kMaxYamlNodes = 100000;

// Where a value was written: line and column of the file (both from 1), or the n-th override of the command line.
struct YamlMark {
  int line = 0;
  int column = 0;
  int override_index = -1;  // >= 0: line and column count inside that override's value
};

struct YamlNode;
// Shared because aliases refer to one node from several places; nodes never change once built.
using YamlNodePtr = std::shared_ptr<const YamlNode>;

struct YamlEntry {
  std::string key;
  YamlMark key_mark;
  YamlNodePtr value;  // never null
};

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  YamlMark mark;
  std::string text;                // scalars
  bool quoted = false;             // scalars: written in quotes, so always a text
  std::vector<YamlNodePtr> items;  // sequences
  std::vector<YamlEntry> entries;  // maps, in the order written
  size_t expanded_size = 1;        // nodes of this subtree, aliases followed
  int expanded_depth = 1;          // levels of this subtree, aliases followed

  // The value under `key`, or null. REQUIRES: kind is kMap.
  YamlNodePtr Find(std::string_view key) const;
};

// "12:9" or, for overrides, "override 'stages.1.steps=3'".
struct YamlSource {
  std::string file_name = "job.yaml";  // as the user knows it
  std::vector<std::string> overrides;  // as the user wrote them
  std::string Describe(const YamlMark& mark) const;
};

// Parses one document. An empty text gives a kNull node; null after a syntax error or a limit, which then is a problem.
// `override_index` goes into every mark.
YamlNodePtr ParseYaml(std::string_view text, Problems* problems, int override_index = -1);

// For messages: "a map", "a list", "'abc'" (shortened), "nothing".
std::string DescribeValue(const YamlNode& node);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_YAML_TREE_H_
