#include "student_worker/data/dataset.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>

#include "absl/strings/ascii.h"
#include "common/hash/sha256.h"
#include "common/log.h"
#include "common/plan/transform_schema.h"
#include "common/str_cat.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/data_survey.h"
#include "student_worker/data/file_dataset.h"
#include "student_worker/data/sampler.h"
#include "student_worker/data/split_request.h"
#include "student_worker/data/transforms.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

class MemoryDataset : public Dataset {
 public:
  MemoryDataset(uint32_t channels, uint32_t height, uint32_t width, uint32_t classes, std::vector<uint8_t> pixels,
                std::vector<int64_t> labels, std::vector<uint8_t> label_maps)
      : channels_(channels),
        height_(height),
        width_(width),
        classes_(classes),
        pixels_(std::move(pixels)),
        labels_(std::move(labels)),
        label_maps_(std::move(label_maps)) {}

  uint64_t size() const override { return labels_.size(); }
  uint32_t channels() const override { return channels_; }
  uint32_t height() const override { return height_; }
  uint32_t width() const override { return width_; }
  uint32_t classes() const override { return classes_; }
  int64_t label(uint64_t index) const override { return labels_[index]; }
  bool has_label_maps() const override { return !label_maps_.empty(); }
  std::string Where(uint64_t index) const override { return StrCat("image ", index); }
  Status Read(uint64_t index, Picture* out) const override {
    out->channels = channels_;
    out->height = height_;
    out->width = width_;
    const auto copy = [index](const std::vector<uint8_t>& from, uint64_t bytes, std::vector<uint8_t>* to) {
      to->assign(from.begin() + index * bytes, from.begin() + (index + 1) * bytes);
    };
    copy(pixels_, channels_ * out->plane(), &out->pixels);
    copy(label_maps_, label_maps_.empty() ? 0 : out->plane(), &out->label_map);
    return OkStatus();
  }

 private:
  const uint32_t channels_, height_, width_, classes_;
  const std::vector<uint8_t> pixels_;  // [N, C, H, W]
  const std::vector<int64_t> labels_;
  const std::vector<uint8_t> label_maps_;  // [N, H, W], or empty
};

SubsetFunction FirstOfShuffle(uint64_t seed, uint64_t limit) {
  return [seed, limit](uint32_t size) {
    if (limit == 0 || limit >= size) {
      std::vector<uint32_t> all(size);
      for (uint32_t i = 0; i < size; ++i) all[i] = i;
      return all;
    }
    return SubsetOrder(seed, size, static_cast<uint32_t>(limit));
  };
}

std::string Shape(uint32_t channels, uint32_t height, uint32_t width) {
  return StrCat("[", channels, ", ", height, ", ", width, "]");
}

// One more than the largest class that occurs.
uint32_t SmallestClassCount(const SplitIndex& split) {
  uint32_t count = 0;
  for (const int64_t label : split.labels) count = std::max<uint32_t>(count, label + 1);
  for (uint32_t id = 0; split.files != nullptr && id < kIgnoredPixel; ++id) {
    if (split.files->pixels_of_class()[id] > 0) count = std::max(count, id + 1);
  }
  return count;
}

struct NamedSplit {
  std::string name;  // of the kind, for messages: "train", "test", "unlabelled"
  SplitIndex* split;
};

// See DataSplits.digest.
std::string DigestOf(const std::string& format, const std::vector<NamedSplit>& splits) {
  Sha256 hash;
  hash.Update(StrCat(format, "\n"));
  for (const auto& [name, split] : splits) {
    hash.Update(StrCat(name, " ", split->digest, "\n"));
    for (const std::string& class_name : split->class_names) hash.Update(StrCat("class ", class_name, "\n"));
  }
  return hash.HexDigest();
}

// `found` images where the job file says `said`, counting those that `limit` (0: none) leaves. Epochs were computed
// from what it says.
void CheckCount(const std::string& key, std::optional<uint64_t> said, uint64_t found, uint64_t limit,
                const std::string& folder, DataReport* report) {
  const auto used = [limit](uint64_t count) { return limit > 0 ? std::min(limit, count) : count; };
  if (!said || used(*said) == used(found)) return;
  report->Refuse(absl::FailedPreconditionError(StrCat("data.", key, " is ", *said, ", but '", folder, "' has ", found,
                                                      " such images; the lengths in epochs were "
                                                      "computed from the former: correct it, or the files")));
}

std::vector<std::string> Missing(const std::vector<std::string>& names, const std::vector<std::string>& from) {
  std::vector<std::string> missing;  // both are sorted
  std::set_difference(names.begin(), names.end(), from.begin(), from.end(), std::back_inserter(missing));
  return missing;
}

// Classes of an image folder or list (`what`): those of training and test images are the same, and not more than the
// student's.
void CheckClassNames(const std::string& folder, const char* what, const SplitIndex& train, const SplitIndex& test,
                     uint32_t classes, DataReport* report) {
  if (train.class_names.empty() && test.class_names.empty()) return;
  if (train.found > 0 && test.found > 0 && train.class_names != test.class_names) {
    std::string text = StrCat("the ", what, " of train and test in '", folder, "' differ");
    const auto only_train = Missing(train.class_names, test.class_names);
    const auto only_test = Missing(test.class_names, train.class_names);
    if (!only_train.empty()) StrAppend(&text, "; only in train: ", NameSome(only_train));
    if (!only_test.empty()) StrAppend(&text, "; only in test: ", NameSome(only_test));
    report->Refuse(absl::FailedPreconditionError(text));
    return;
  }
  const std::vector<std::string>& names = train.found > 0 ? train.class_names : test.class_names;
  if (classes > 0 && names.size() > classes) {
    report->Refuse(absl::InvalidArgumentError(
        StrCat("'", folder, "' has ", names.size(), " ", what, " (", NameSome(names), "), the student ", classes,
               " classes; set num_classes: ", names.size(), " if all of them are meant")));
  }
  if (classes > names.size()) {
    report->Warn(StrCat("num_classes is ", classes, ", but '", folder, "' has ", names.size(), " ", what,
                        ": no image has a class from ", names.size(), " on."));
  }
  std::map<std::string, std::string> lower;
  for (const std::string& name : names) {
    const auto [other, added] = lower.emplace(absl::AsciiStrToLower(name), name);
    if (!added) {
      report->Warn(StrCat("The ", what, " '", other->second, "' and '", name, "' in '", folder,
                          "' differ in capitals only, and are two classes."));
    }
  }
}

// Names the classes below `classes` that never occur in the label maps (or, IDX, among the labels) of a split.
void WarnOfAbsentClasses(const std::string& name, const SplitIndex& split, uint32_t classes, DataReport* report) {
  std::string ids;
  size_t absent = 0;
  for (uint32_t id = 0; id < std::min<uint32_t>(classes, kIgnoredPixel); ++id) {
    const bool found = split.label_found.empty() ? split.files->pixels_of_class()[id] > 0 : split.label_found[id];
    if (found) continue;
    if (absent++ < DataReport::kNamedFiles) StrAppend(&ids, ids.empty() ? "" : ", ", id);
  }
  if (absent == 0) return;
  if (absent > DataReport::kNamedFiles) StrAppend(&ids, " and ", absent - DataReport::kNamedFiles, " more");
  report->Warn(
      StrCat("No ", split.label_found.empty() ? "pixel of the label maps" : "label", " of ", name, " has class ", ids,
             ", though num_classes is ", classes,
             name == "test" ? ": how well the student knows it is not measured." : ": the student cannot learn it."));
}

// Decides what stays in memory, and reads everything if all of it does, or if options.survey wants it. True: it was
// read.
bool Preload(const std::vector<NamedSplit>& splits, const DataOptions& options, SplitRequest* request) {
  uint64_t bytes = 0;
  for (const auto& [name, split] : splits) bytes += split->files == nullptr ? 0 : split->files->decoded_bytes();
  const bool fits = bytes <= options.cache_bytes;
  const bool surveys = options.survey != nullptr;
  const bool all = !surveys && fits && (options.cache == CacheMode::kAuto || options.cache == CacheMode::kDecoded);
  const CacheMode mode = surveys                             ? CacheMode::kNone
                         : all                               ? CacheMode::kDecoded
                         : options.cache == CacheMode::kAuto ? CacheMode::kNone
                                                             : options.cache;
  const auto budget = std::make_shared<CacheBudget>(options.cache_bytes);
  for (const auto& [name, split] : splits) {
    if (split->files == nullptr) continue;
    // What is refused will not be used: it is read for its faults alone.
    const bool keeps = !all || request->report->ok();
    split->files->Keep(keeps ? mode : CacheMode::kNone, budget);
    if (!all && !surveys) continue;
    request->name = name;
    split->files->Preload(*request);
    if (split->files->has_label_maps() && request->report->ok()) {
      CheckLabelsSayMore(*request, split->label_source, split->files->pixels_of_class());
    }
  }
  return all || surveys;
}

// After what was read picture by picture: the splits that lie in memory.
void Survey(const std::vector<NamedSplit>& splits, const DataReport& report, DataSurvey* survey) {
  for (const auto& [name, split] : splits) {
    const uint64_t image_bytes = uint64_t{split->channels} * split->height * split->width;
    for (size_t i = 0; !split->pixels.empty() && i < split->labels.size(); ++i) {
      const auto begin = split->pixels.begin() + static_cast<ptrdiff_t>(i * image_bytes);
      const Picture picture{
          split->channels, split->height, split->width, {begin, begin + static_cast<ptrdiff_t>(image_bytes)}, {}};
      survey->Add(name, split->labels[i], picture);
    }
    survey->SetClassNames(name, split->class_names);
  }
  survey->SetReport(report.mistakes(), report.warnings());
}

}  // namespace

Status Dataset::ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const {
  DISTILL_RETURN_IF_ERROR(Read(index, out));
  *part = ChooseOf(*out, choose);
  return OkStatus();
}

StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path) {
  if (path.find('\0') != std::string::npos) return absl::InvalidArgumentError("the path holds a zero byte");
  std::error_code error;
  const fs::path real_root = fs::canonical(root, error);
  if (error) {
    return absl::NotFoundError(
        StrCat("data root '", root, "': ", error.message(), "; start the student with a data root that exists"));
  }
  const fs::path joined = fs::path(path).is_absolute() ? fs::path(path) : real_root / path;
  const fs::path real = fs::weakly_canonical(joined, error);
  if (error) return absl::NotFoundError(StrCat("'", joined.string(), "': ", error.message()));
  const auto lies_in_root = [&](const fs::path& at) {
    return std::mismatch(real_root.begin(), real_root.end(), at.begin(), at.end()).first == real_root.end();
  };
  if (!lies_in_root(real)) {
    if (lies_in_root(joined.lexically_normal())) {
      return absl::InvalidArgumentError(StrCat(
          "'", path, "' is or goes through a symbolic link, which leads out of the data root '", real_root.string(),
          "' to '", real.string(), "'; copy it there, or start the student with a data root that holds both"));
    }
    return absl::InvalidArgumentError(StrCat("'", path, "' leads out of the data root '", real_root.string(),
                                             "'; give a path inside it or start the student with another data root"));
  }
  if (!fs::exists(real, error)) {
    return absl::NotFoundError(
        StrCat("'", real.string(), "' does not exist; correct data.path or start the student with another data root"));
  }
  return real.string();
}

StatusOr<std::shared_ptr<const Dataset>> MakeMemoryDataset(uint32_t channels, uint32_t height, uint32_t width,
                                                           uint32_t classes, std::vector<uint8_t> pixels,
                                                           std::vector<int64_t> labels,
                                                           std::vector<uint8_t> label_maps) {
  const uint64_t image_bytes = uint64_t{channels} * height * width;
  if (labels.empty() || image_bytes == 0)
    return absl::InvalidArgumentError("a data set needs at least one image of at least one pixel");
  if (labels.size() > UINT32_MAX || pixels.size() / image_bytes != labels.size() || pixels.size() % image_bytes != 0) {
    return absl::InvalidArgumentError(StrCat(pixels.size(), " bytes of pixels are not ", labels.size(),
                                             " images of shape ", Shape(channels, height, width)));
  }
  const bool unlabelled = labels[0] == kNoLabel;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (unlabelled ? labels[i] != kNoLabel : labels[i] < 0 || labels[i] >= classes) {
      return absl::InvalidArgumentError(StrCat("label ", labels[i], " of image ", i, " is not in [0, ", classes, ")"));
    }
  }
  if (!label_maps.empty()) {
    const uint64_t map_bytes = uint64_t{height} * width;
    if (!unlabelled) return absl::InvalidArgumentError("images have either labels or label maps, not both");
    if (label_maps.size() / map_bytes != labels.size() || label_maps.size() % map_bytes != 0) {
      return absl::InvalidArgumentError(StrCat(label_maps.size(), " bytes of label maps are not ", labels.size(),
                                               " of ", height, "x", width, " pixels"));
    }
    for (size_t i = 0; i < label_maps.size(); ++i) {
      if (label_maps[i] >= classes && label_maps[i] != kIgnoredPixel) {
        return absl::InvalidArgumentError(StrCat("class id ", int{label_maps[i]}, " in the label map of image ",
                                                 i / map_bytes, " is not in [0, ", classes, ")"));
      }
    }
  }
  return std::make_shared<const MemoryDataset>(channels, height, width, classes, std::move(pixels), std::move(labels),
                                               std::move(label_maps));
}

WantedImages WantedBy(const JobPlan& plan) {
  const ModelSpec& student = plan.student;
  return {.classes = student.num_classes,
          .channels = student.in_channels,
          .height = student.image_height,
          .width = student.image_width,
          .test_of_any_size = !plan.evaluate_scales.empty() || !plan.evaluate_window.empty()};
}

StatusOr<DataSplits> OpenDataset(const DataPlan& plan, const std::string& data_root, uint64_t seed,
                                 const WantedImages& want, const DataOptions& options,
                                 const std::function<bool()>& stop) {
  StatusOr<SplitIndex> (*reader)(const SplitRequest&) = nullptr;
  if (plan.format == "idx") reader = ReadIdxSplit;
  if (plan.format == "cifar") reader = ReadCifarSplit;
  if (plan.format == "image_list") reader = ReadImageListSplit;
  if (plan.format == "image_folder") reader = ReadImageFolderSplit;
  if (plan.format == "segmentation_folder") reader = ReadSegmentationFolderSplit;
  if (reader == nullptr) {
    return absl::InvalidArgumentError(StrCat("unknown data.format '", plan.format,
                                             "'; known: idx, cifar, image_folder, image_list, segmentation_folder"));
  }
  if (plan.shrink == 0) return absl::InvalidArgumentError("data.shrink is 0; need 1 (as they are) or more");
  DISTILL_ASSIGN_OR_RETURN(const LabelIds label_ids, LabelIds::Create(plan, want.classes));
  const bool has_pairs = plan.train_files.has_value();
  if (plan.test_files.has_value() != (has_pairs && !plan.split)) {
    return absl::InvalidArgumentError(
        "data.pairs names training and test images, or training images beside data.split");
  }
  if (has_pairs) reader = ReadSegmentationPairsSplit;
  DISTILL_ASSIGN_OR_RETURN(const Transforms train_transforms, Transforms::Create(plan.train_transforms, seed));
  DISTILL_ASSIGN_OR_RETURN(const Transforms test_transforms, Transforms::Create(plan.test_transforms, seed));
  const TransformedSize train_size = train_transforms.size(), test_size = test_transforms.size();
  for (const auto& [size, free] : {std::pair{train_size, false}, {test_size, want.test_of_any_size}}) {
    if (free || !size.any || want.height == 0 || (size.height == want.height && size.width == want.width)) continue;
    return absl::InvalidArgumentError(StrCat("data.transforms makes pictures of [", size.height, ", ", size.width,
                                             "] (height, width), the student takes [", want.height, ", ", want.width,
                                             "]"));
  }
  const bool takes_parts = train_transforms.takes_part() || test_transforms.takes_part();
  DISTILL_ASSIGN_OR_RETURN(const std::string folder, ResolveBelow(data_root, plan.path));
  DataReport report(stop, /*tells_all=*/options.survey != nullptr);
  DataSplits splits;
  splits.bad_images = std::make_shared<BadImages>(plan);
  splits.threads = std::make_shared<ReadThreads>(options.threads);
  SplitRequest request{.root = data_root,
                       .folder = folder,
                       .want = want,
                       .label_ids = label_ids,
                       .shrink = plan.shrink,
                       .takes_parts = takes_parts,
                       .report = &report,
                       .listing_report = &report,
                       .bad_images = splits.bad_images.get(),
                       .threads = splits.threads.get(),
                       .survey = options.survey};
  // What is wrong with one split does not keep the others from being looked at.
  const auto read = [&](const std::string& name, SplitKind kind, bool any_size, SubsetFunction subset) {
    request.name = name;
    request.kind = kind;
    request.any_size = any_size;
    request.subset = std::move(subset);
    request.files = kind == SplitKind::kUnlabelled ? SplitFiles{.images = name}
                    : name == "train"              ? plan.train_files.value_or(SplitFiles())
                                                   : plan.test_files.value_or(SplitFiles());
    if (!report.wanted().ok()) return SplitIndex();
    auto split = reader(request);
    if (split.ok()) return *std::move(split);
    report.Refuse(split.status());
    return SplitIndex();
  };
  const bool has_unlabelled = !plan.unlabelled.empty();
  if (plan.split) {
    request.part = SplitPart::kAllButTest;
    request.split = *plan.split;
  }
  const SplitKind train_kind = has_unlabelled ? SplitKind::kLabelledOrMissing : SplitKind::kLabelled;
  SplitIndex train = read("train", train_kind, train_size.any, FirstOfShuffle(seed, plan.train_limit));
  SplitIndex test;
  if (!plan.split) {
    test = read("test", SplitKind::kLabelled, test_size.any, FirstOfShuffle(0, plan.test_limit));
  } else if (!train.labels.empty()) {
    DataReport told(stop);  // of the files that were listed for training
    request.part = SplitPart::kTest;
    request.listing_report = &told;
    test = read("train", SplitKind::kLabelled, test_size.any, FirstOfShuffle(0, plan.test_limit));
    request.listing_report = &report;
  } else if (report.ok()) {
    report.Refuse(absl::NotFoundError(
        StrCat("data.split takes test images out of those of train, of which there are none in '", folder, "'")));
  }
  request.part = SplitPart::kAll;
  SplitIndex unlabelled;
  if (has_unlabelled) unlabelled = read(plan.unlabelled, SplitKind::kUnlabelled, train_size.any, FirstOfShuffle(0, 0));
  const std::vector<NamedSplit> named = {{"train", &train}, {"test", &test}, {"unlabelled", &unlabelled}};
  const bool preloaded = Preload(named, options, &request);
  DISTILL_RETURN_IF_ERROR(report.wanted());

  CheckClassNames(folder, plan.format == "image_list" ? "classes" : "class folders", train, test, want.classes,
                  &report);
  // Counts of a split that could not be listed would only repeat that.
  if (report.ok() || train.found > 0) {
    CheckCount("train_size", plan.train_size, train.found, plan.train_limit, folder, &report);
  }
  if (has_unlabelled && (report.ok() || unlabelled.found > 0)) {
    CheckCount("unlabelled_size", plan.unlabelled_size, unlabelled.found, 0, folder, &report);
  }
  const bool knows_classes =
      plan.format == "idx" || plan.format == "cifar" || (plan.format == "segmentation_folder" && preloaded);
  if (knows_classes && report.ok()) {
    for (const auto& [name, split] : named) {
      if (name != "unlabelled" && !split->labels.empty()) WarnOfAbsentClasses(name, *split, want.classes, &report);
    }
  }
  if (report.ok()) {  // where the student does not say what it takes
    for (const auto& [name, split] : named) {
      if (split->labels.empty()) continue;
      const bool any_size = name == "test" || train_size.any || test_size.any;
      if (split->channels != test.channels ||
          (!any_size && (split->height != test.height || split->width != test.width))) {
        report.Refuse(absl::FailedPreconditionError(
            StrCat(name, " images in '", folder, "' have shape ", Shape(split->channels, split->height, split->width),
                   ", test images ", Shape(test.channels, test.height, test.width))));
      }
    }
  }
  splits.bad_images->SetTotal(train.labels.size() + test.labels.size() + unlabelled.labels.size());
  if (const Status judged = splits.bad_images->Judge(); !judged.ok()) report.Refuse(judged);
  if (options.survey != nullptr) Survey(named, report, options.survey);
  DISTILL_RETURN_IF_ERROR(report.status());

  uint32_t classes = want.classes;
  if (classes == 0) {
    classes = std::max(train.class_names.size(), test.class_names.size());
    for (const SplitIndex* split : {&train, &test}) classes = std::max(classes, SmallestClassCount(*split));
  }
  splits.warnings = report.warnings();
  for (std::string& news : splits.bad_images->TakeNews()) splits.warnings.push_back(std::move(news));
  splits.digest = DigestOf(plan.format, named);
  for (const auto& [split, out] :
       {std::pair{&train, &splits.train}, {&test, &splits.test}, {&unlabelled, &splits.unlabelled}}) {
    if (split->labels.empty()) continue;
    if (split->files != nullptr) {
      split->files->SetClasses(classes);
      *out = std::move(split->files);
      continue;
    }
    DISTILL_ASSIGN_OR_RETURN(*out, MakeMemoryDataset(split->channels, split->height, split->width, classes,
                                                     std::move(split->pixels), std::move(split->labels)));
  }
  LogInfo("data opened", {{"folder", folder},
                          {"train", splits.train == nullptr ? 0 : splits.train->size()},
                          {"unlabelled", splits.unlabelled == nullptr ? 0 : splits.unlabelled->size()},
                          {"test", splits.test->size()},
                          {"classes", classes},
                          {"in_memory", preloaded},
                          {"digest", splits.digest}});
  for (const std::string& warning : splits.warnings) LogWarning("odd in the data", {{"what", warning}});
  return splits;
}

}  // namespace distill
