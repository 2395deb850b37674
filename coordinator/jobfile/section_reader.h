// Reads one map of a job file into plain values, strictly: every key must be known and of the right type and range.
//
// All problems go to the Problems object; a read leaves its output unchanged when the key is absent or wrong, so
// defaults are what the output held before. Thread-compatible; lives on the stack of a reading function.
#ifndef DISTILL_COORDINATOR_JOBFILE_SECTION_READER_H_
#define DISTILL_COORDINATOR_JOBFILE_SECTION_READER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/jobfile/job_keys.h"
#include "coordinator/jobfile/problems.h"
#include "coordinator/jobfile/yaml_tree.h"

namespace distill {

// Allowed numbers: (or [ minimum, maximum ) or ].
struct NumberRange {
  double minimum = 0;
  double maximum = 1e18;
  bool minimum_exclusive = false;
  bool maximum_exclusive = false;
  bool Contains(double value) const;
  std::string Describe() const;  // "in [0, 1)", ">= 0", "> 0"
};

class SectionReader {
 public:
  // `node` null: the section is absent and everything keeps its default. `path` names it in messages
  // ("stages[1].losses[0]", "" for the top). Adds a problem when it is no map, and one for each unknown key.
  SectionReader(YamlNodePtr node, std::string path, std::vector<std::string> keys, Problems* problems);
  SectionReader(YamlNodePtr node, std::string path, KeyList keys, Problems* problems);

  bool present() const { return node_ != nullptr; }
  // Where the key's value stands; the section's own place when it is absent.
  YamlMark Mark(std::string_view key) const;
  YamlMark mark() const;
  // The value, or null when the key is absent or an override took it away ("--set teacher=null").
  YamlNodePtr Find(std::string_view key) const;
  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  // "student.arch"
  std::string Name(std::string_view key) const;
  // Adds "KEY: text" at the key's place.
  void Problem(std::string_view key, std::string_view text) const;
  // Adds a problem and returns false when the key is absent.
  bool Require(std::string_view key) const;

  // Each returns true when the key was there and right.
  bool Text(std::string_view key, std::string* out) const;
  bool Choice(std::string_view key, const std::vector<std::string>& choices, std::string* out) const;
  bool Flag(std::string_view key, bool* out) const;
  bool Number(std::string_view key, const NumberRange& range, double* out) const;
  bool Integer(std::string_view key, uint64_t minimum, uint64_t maximum, uint64_t* out) const;
  bool Integer(std::string_view key, uint64_t minimum, uint64_t maximum, uint32_t* out) const;
  bool ByteSize(std::string_view key, uint64_t minimum, uint64_t maximum, uint64_t* out) const;
  bool Numbers(std::string_view key, const NumberRange& range, std::vector<double>* out) const;
  // A list of texts, or one text.
  bool Texts(std::string_view key, std::vector<std::string>* out, std::vector<YamlMark>* marks) const;

 private:
  bool TextAt(const YamlNode& node, std::string_view name, std::string* out) const;
  bool NumberAt(const YamlNode& node, std::string_view name, const NumberRange& range, double* out) const;

  YamlNodePtr node_;  // a map, or null
  YamlMark mark_;
  const std::string path_;
  Problems* const problems_;  // not owned; outlives the reader
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_SECTION_READER_H_
