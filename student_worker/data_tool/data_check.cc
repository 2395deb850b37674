#include "student_worker/data_tool/data_check.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "student_worker/data/data_survey.h"
#include "student_worker/data/dataset.h"

namespace distill {
namespace {

constexpr size_t kListedClasses = 20, kNamedClasses = 5;

// Names of files may hold anything: what could steer a terminal is written as \\xNN.
std::string Printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      out.push_back(c);
    }
  }
  return out;
}

std::string Share(uint64_t part, uint64_t all) {
  return absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(part) / static_cast<double>(all));
}

std::string Size(const std::pair<uint32_t, uint32_t>& size) { return StrCat(size.first, "x", size.second); }

std::string Line(std::string_view label, const std::string& text) {
  return absl::StrFormat("  %-11s%s\n", label, text);
}

// Images by the length of their short side, in powers of two.
std::string ShortSides(const SplitSurvey& split) {
  std::map<uint32_t, uint64_t> counts;  // by the power's exponent
  for (const auto& [size, count] : split.sizes) {
    uint32_t exponent = 0;
    while ((2u << exponent) <= std::min(size.first, size.second)) ++exponent;
    counts[exponent] += count;
  }
  std::vector<std::string> texts;
  for (const auto& [exponent, count] : counts) {
    texts.push_back(StrCat(1u << exponent, " to ", (2u << exponent) - 1, ": ", count));
  }
  return absl::StrJoin(texts, ", ");
}

std::string Sizes(const SplitSurvey& split) {
  if (split.sizes.size() == 1) return StrCat(Size(split.sizes.begin()->first), " (height x width), all of them");
  const auto smaller = [](const auto& a, const auto& b) {
    return uint64_t{a.first.first} * a.first.second < uint64_t{b.first.first} * b.first.second;
  };
  const auto [least, most] = std::minmax_element(split.sizes.begin(), split.sizes.end(), smaller);
  const auto common = std::max_element(split.sizes.begin(), split.sizes.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return StrCat(split.sizes.size(), " sizes, ", Size(least->first), " to ", Size(most->first),
                " (height x width), most often ", Size(common->first), " (", Share(common->second, split.images),
                "): data.transforms has to bring them to one");
}

std::string ClassName(const SplitSurvey& split, int64_t label) {
  if (static_cast<uint64_t>(label) >= split.class_names.size()) return StrCat(label);
  return Printable(split.class_names[static_cast<size_t>(label)]);
}

std::string Classes(const SplitSurvey& split) {
  std::vector<std::pair<uint64_t, int64_t>> counts;  // images and label
  for (const auto& [label, count] : split.images_of_class) {
    if (label != kNoLabel) counts.emplace_back(count, label);
  }
  const auto tell = [&](const auto& one) { return StrCat(ClassName(split, one.second), " ", one.first); };
  std::vector<std::string> texts;
  if (counts.size() <= kListedClasses) {
    for (const auto& one : counts) texts.push_back(tell(one));
    return StrCat(counts.size(), ": ", absl::StrJoin(texts, ", "));
  }
  std::sort(counts.begin(), counts.end());
  for (size_t i = 0; i < kNamedClasses; ++i) texts.push_back(tell(counts[i]));
  std::vector<std::string> most;
  for (size_t i = counts.size() - kNamedClasses; i < counts.size(); ++i) most.push_back(tell(counts[i]));
  return StrCat(counts.size(), ", of ", counts.front().first, " to ", counts.back().first,
                " images; fewest: ", absl::StrJoin(texts, ", "), "; most: ", absl::StrJoin(most, ", "));
}

std::string PixelsOfClasses(const SplitSurvey& split) {
  std::vector<std::string> texts;
  for (size_t id = 0; id < split.pixels_of_class.size(); ++id) {
    if (split.pixels_of_class[id] == 0) continue;
    texts.push_back(StrCat(id == kIgnoredPixel ? "without a label" : StrCat(id), " ",
                           Share(split.pixels_of_class[id], split.pixels)));
  }
  return absl::StrJoin(texts, ", ");
}

std::string Values(const std::vector<double>& values) {
  return StrCat(
      "[",
      absl::StrJoin(values, ", ", [](std::string* out, double value) { absl::StrAppendFormat(out, "%.4f", value); }),
      "]");
}

std::string List(std::string_view head, const std::vector<std::string>& sentences) {
  std::string text;
  if (!sentences.empty()) StrAppend(&text, "\n", head, "\n");
  for (const std::string& sentence : sentences) StrAppend(&text, "  - ", Printable(sentence), "\n");
  return text;
}

}  // namespace

StatusOr<DataCheck> CheckData(const DataCheckOptions& options) {
  DISTILL_ASSIGN_OR_RETURN(const std::string folder, ResolveBelow(options.data_root, options.data.path));
  DataPlan plan = options.data;
  // Whatever the sizes are: the job's transforms will bring them to one, and shrink is the job's as well.
  plan.train_transforms = plan.test_transforms = {{"resize", {{"size", {1, 1}}}}};
  DataSurvey survey;
  const auto opened = OpenDataset(plan, options.data_root, 0, {.classes = options.classes},
                                  {.threads = options.threads, .survey = &survey});
  DataCheck check;
  check.sound = opened.ok();
  check.text = StrCat(Printable(folder), ": ", plan.format, "\n");
  const std::map<std::string, SplitSurvey> splits = survey.splits();
  for (const char* const name : {"train", "test", "unlabelled"}) {
    const auto found = splits.find(name);
    if (found == splits.end()) continue;
    const SplitSurvey& split = found->second;
    StrAppend(&check.text, "\n", name, "\n");
    check.text += Line(
        "images", StrCat(split.images, ", of ", split.sums.size(), split.sums.size() == 1 ? " channel" : " channels"));
    check.text += Line("size", Sizes(split));
    check.text += Line("short side", ShortSides(split));
    if (split.images_of_class.size() > 1 || !split.images_of_class.contains(kNoLabel)) {
      check.text += Line("classes", Classes(split));
    }
    if (const std::string pixels = PixelsOfClasses(split); !pixels.empty()) check.text += Line("class ids", pixels);
    check.text += Line("mean", Values(split.Mean()));
    check.text += Line("std", Values(split.Std()));
  }
  std::vector<std::string> mistakes = survey.mistakes();
  // What ended it before anything was listed.
  if (!opened.ok() && mistakes.empty()) mistakes.emplace_back(ToStd(opened.status().message()));
  check.text += List("odd:", survey.warnings());
  check.text += List("wrong:", mistakes);
  if (check.sound) check.text += "\nnothing is wrong\n";
  return check;
}

}  // namespace distill
