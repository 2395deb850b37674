#include "coordinator/jobfile/pairs_reader.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "common/plan/path_pattern.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/job_keys.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr uint32_t kMaxId = 255;            // of 8-bit label maps
constexpr uint32_t kMaxClass = kMaxId - 1;  // 255 marks pixels without a label
constexpr size_t kNamedClasses = 10;

std::optional<PathPattern> ReadPattern(const SectionReader& section, std::string_view key, std::string* out) {
  std::string text;
  if (!section.Require(key) || !section.Text(key, &text)) return std::nullopt;
  StatusOr<PathPattern> pattern = PathPattern::Parse(text);
  if (!pattern.ok()) {
    section.Problem(key, StrCat("the pattern '", Shorten(text), "' ", pattern.status().message()));
    return std::nullopt;
  }
  *out = text;
  return *std::move(pattern);
}

// data.pairs.train or .test.
std::optional<SplitFiles> ReadPairsOf(const SectionReader& pairs, const std::string& key, Problems* problems) {
  const std::string path = StrCat("data.pairs.", key);
  const SectionReader section(pairs.Find(key), path, JobSectionKeys("data.pairs[]"), problems);
  if (!section.present()) return std::nullopt;
  SplitFiles plan;
  const auto images = ReadPattern(section, "images", &plan.images);
  const auto labels = ReadPattern(section, "labels", &plan.labels);
  if (section.Text("list", &plan.list)) {
    if (const std::string problem = PathProblem(plan.list); !problem.empty()) {
      section.Problem("list", StrCat("the path '", Shorten(plan.list), "' ", problem));
    }
  }
  if (!images || !labels) return std::nullopt;
  if (images->stars() != labels->stars()) {
    section.Problem("labels", StrCat("has ", labels->stars(), " stars, images ", images->stars(),
                                     "; each star of labels stands for what that of the same place in images matched"));
  } else if (plan.images == plan.labels) {
    section.Problem("labels", "names the images themselves; name their label maps");
  }
  return plan;
}

void ReadLabelMap(const SectionReader& data, JobDraft* job) {
  DataPlan* const plan = &job->plan.data;
  const YamlNodePtr node = data.Find("label_map");
  if (node == nullptr) return;
  job->label_map_mark = data.Mark("label_map");
  if (node->kind != YamlNode::Kind::kMap || node->entries.empty()) {
    data.Problem("label_map", StrCat("expected a map of ids to classes, as {7: 0, 8: 1}, got ",
                                     node->kind == YamlNode::Kind::kMap ? "an empty one" : DescribeValue(*node)));
    return;
  }
  for (const YamlEntry& entry : node->entries) {
    uint32_t id = 0, label = 0;
    if (!absl::SimpleAtoi(entry.key, &id) || id > kMaxId) {
      data.Problem("label_map", StrCat("'", Shorten(entry.key),
                                       "' is no id of a label map's pixel, a whole number in [0, ", kMaxId, "]"));
    } else if (entry.value->kind != YamlNode::Kind::kScalar || !absl::SimpleAtoi(entry.value->text, &label) ||
               label > kMaxClass) {
      data.Problem("label_map", StrCat("id ", id, ": expected a class, a whole number in [0, ", kMaxClass, "], got ",
                                       DescribeValue(*entry.value), "; leave ids without a class out"));
    } else if (!plan->label_map.emplace(id, label).second) {
      data.Problem("label_map", StrCat("id ", id, " is named twice, once as '", Shorten(entry.key), "'"));
    }
  }
  if (data.Has("ignore_label") && plan->label_map.contains(plan->ignore_label)) {
    data.Problem("label_map", StrCat("id ", plan->ignore_label, " has class ", plan->label_map[plan->ignore_label],
                                     ", but data.ignore_label says that it is no label; take one of the two out"));
  }
  if (plan->reduce_zero_label) {
    data.Problem("label_map", "does all that reduce_zero_label does; leave one of the two out");
  }
}

}  // namespace

void ReadPairs(const SectionReader& data, Problems* problems, JobDraft* job) {
  DataPlan* const plan = &job->plan.data;
  data.Integer("ignore_label", 0, kMaxId, &plan->ignore_label);
  data.Flag("reduce_zero_label", &plan->reduce_zero_label);
  if (plan->format != "segmentation_folder") {
    for (const auto& [key, what] : {std::pair{"ignore_label", "stands for pixels without a label"},
                                    {"reduce_zero_label", "renumbers the classes of pixels"},
                                    {"label_map", "renumbers the classes of pixels"},
                                    {"pairs", "names images and their label maps"}}) {
      if (data.Has(key)) data.Problem(key, StrCat(what, ", which only format: segmentation_folder has"));
    }
    return;
  }
  ReadLabelMap(data, job);
  const SectionReader pairs(data.Find("pairs"), "data.pairs", JobSectionKeys("data.pairs"), problems);
  if (!pairs.present()) return;
  if (pairs.Require("train")) plan->train_files = ReadPairsOf(pairs, "train", problems);
  plan->test_files = ReadPairsOf(pairs, "test", problems);
  if (plan->split && pairs.Has("test")) {
    pairs.Problem("test", "data.split takes test images out of those of train; leave one of the two out");
  } else if (!plan->split && !pairs.Has("test")) {
    pairs.Problem("test", "the test images are missing; name them, or give data.split, which takes some of train");
  }
  if (plan->train_files && plan->test_files && *plan->train_files == *plan->test_files) {
    pairs.Problem("test", "names the training images; name others, or give data.split, which takes some of train");
  }
  if (plan->unlabelled.empty()) return;
  if (const StatusOr<PathPattern> pattern = PathPattern::Parse(plan->unlabelled); !pattern.ok()) {
    data.Problem("unlabelled", StrCat("beside data.pairs it is a pattern of images, and '", Shorten(plan->unlabelled),
                                      "' ", pattern.status().message()));
  }
}

void CheckLabelMap(const JobDraft& job, uint32_t num_classes, Problems* problems) {
  const std::map<uint32_t, uint32_t>& map = job.plan.data.label_map;
  if (map.empty()) return;
  std::vector<std::string> ids_of(num_classes);
  std::string beyond, absent, shared;
  for (const auto& [id, label] : map) {
    if (label >= num_classes) {
      StrAppend(&beyond, beyond.empty() ? "" : ", ", id, " has class ", label);
    } else {
      StrAppend(&ids_of[label], ids_of[label].empty() ? "" : " and ", id);
    }
  }
  if (!beyond.empty()) {
    problems->Add(job.label_map_mark,
                  StrCat("data.label_map: ", beyond, ", but the student has ", num_classes, " classes, 0 to ",
                         num_classes - 1, "; correct it or student.num_classes"));
    return;
  }
  // Several ids may be one class; where this leaves another without any, it is a slip.
  size_t count = 0;
  for (uint32_t label = 0; label < num_classes; ++label) {
    if (ids_of[label].find(' ') != std::string::npos) {
      StrAppend(&shared, shared.empty() ? "" : "; ", "ids ", ids_of[label], " have class ", label);
    }
    if (!ids_of[label].empty() || ++count > kNamedClasses) continue;
    StrAppend(&absent, absent.empty() ? "" : ", ", label);
  }
  if (count == 0) return;
  if (count > kNamedClasses) StrAppend(&absent, " and ", count - kNamedClasses, " more");
  problems->Add(job.label_map_mark,
                StrCat("data.label_map: no id has class ", absent, ", though the student has ", num_classes, " classes",
                       shared.empty() ? "" : StrCat(" (", shared, ")"), "; correct it or student.num_classes"));
}

}  // namespace distill
