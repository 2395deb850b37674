// Segmentation folders whose files lie as patterns say: data.pairs.
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/plan/path_pattern.h"
#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/listed_files.h"
#include "student_worker/data/pattern_files.h"
#include "student_worker/data/read_file.h"
#include "student_worker/data/segmentation_index.h"
#include "student_worker/data/split_request.h"

namespace distill {
namespace {

constexpr uint64_t kMaxListBytes = 1ull << 30;

struct ListedStars {
  std::vector<std::string> stars;
  uint64_t line = 0;  // from 1
};

// The lines of a list, each of which says what the `stars` stars of one image stand for.
StatusOr<std::vector<ListedStars>> ParseStars(std::string_view text, size_t stars, const std::string& where) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a byte order mark
  std::vector<ListedStars> listed;
  std::map<std::string, uint64_t, std::less<>> seen;  // line by text
  uint64_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    std::string line(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    absl::StripAsciiWhitespace(&line);
    if (line.empty()) continue;
    const auto wrong = [&](const std::string& what) {
      return absl::DataLossError(StrCat("line ", number, " of '", where, "' ", what));
    };
    if (line.find('\0') != std::string::npos) return wrong("holds a zero byte: it is no text file");
    ListedStars image{absl::StrSplit(line, '/'), number};
    if (image.stars.size() != stars) {
      return wrong(StrCat("has ", image.stars.size(), image.stars.size() == 1 ? " part" : " parts",
                          " between '/'; it says what the ", stars, stars == 1 ? " star" : " stars",
                          " of the patterns stand for, joined by '/'"));
    }
    for (const std::string& star : image.stars) {
      if (star.empty() || star == "." || star == "..") return wrong(StrCat("has the part '", star, "'"));
    }
    const auto [before, added] = seen.emplace(line, number);
    if (!added) {
      return absl::FailedPreconditionError(StrCat("'", where, "' has '", line, "' in line ", before->second,
                                                  " and in line ", number, "; it would count twice: remove one"));
    }
    listed.push_back(std::move(image));
  }
  return listed;
}

// The images that the list names, with their label maps.
Status ReadListed(const SplitRequest& request, const std::string& list, const PathPattern& images,
                  const PathPattern& labels, SegmentationFiles* files) {
  auto path = ResolveBelow(request.root, StrCat(request.folder, "/", list));
  if (absl::IsNotFound(path.status())) {
    return absl::NotFoundError(StrCat("no list '", request.folder, "/", list, "', which data.pairs.", request.name,
                                      ".list names; correct it, or fetch the list"));
  }
  DISTILL_RETURN_IF_ERROR(path.status());
  auto text = ReadFileHead(*path, kMaxListBytes);
  if (!text.ok()) return Status(text.status().code(), StrCat("'", *path, "': ", ToStd(text.status().message())));
  DISTILL_ASSIGN_OR_RETURN(const std::vector<ListedStars> listed, ParseStars(*text, images.stars(), *path));
  if (listed.empty()) return absl::NotFoundError(StrCat("'", *path, "' lists no image"));
  const std::string remedy = StrCat("fetch them, or correct the list or data.pairs.", request.name);
  ListedFiles pictures(request, "listed pictures", remedy), maps(request, "label maps of listed pictures", remedy);
  for (const ListedStars& image : listed) {
    DISTILL_RETURN_IF_ERROR(request.report->wanted());
    const std::string detail = StrCat("line ", image.line, " of '", list, "'");
    files->names.push_back(images.Fill(image.stars));
    files->images.push_back(pictures.Find(files->names.back(), detail));
    files->labels.push_back(maps.Find(labels.Fill(image.stars), detail));
  }
  return OkStatus();
}

// All that the patterns match, paired by their stars. Either without the other is refused.
void Pair(const SplitRequest& request, const PathPattern& labels, PatternFiles found_images, PatternFiles found_labels,
          SegmentationFiles* files) {
  DataReport* const report = request.listing_report;
  for (auto& [stars, image] : found_images.matches) {
    const auto label = found_labels.matches.find(stars);
    if (label == found_labels.matches.end()) {
      report->Refuse({StrCat("images without a label map, as data.pairs.", request.name, ".labels names it"),
                      "add it, correct the pattern, or name the images that have one in a file: data.pairs." +
                          request.name + ".list",
                      StatusCode::kNotFound},
                     image.where, StrCat("needs '", labels.Fill(absl::StrSplit(stars, '/')), "'"));
      continue;
    }
    files->names.push_back(image.name);
    files->images.push_back(std::move(image));
    files->labels.push_back(std::move(label->second));
    found_labels.matches.erase(label);
  }
  for (const auto& [stars, file] : found_labels.matches) {
    report->Refuse({StrCat("label maps without an image, as data.pairs.", request.name, ".images names it"),
                    "add their images, or remove them", StatusCode::kFailedPrecondition},
                   file.where);
  }
}

}  // namespace

StatusOr<SplitIndex> ReadSegmentationPairsSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  const SplitFiles& plan = request.files;
  const std::string key = labelled ? StrCat("data.pairs.", request.name, ".images") : "data.unlabelled";
  const auto parse = [](const std::string& name, const std::string& text) -> StatusOr<PathPattern> {
    StatusOr<PathPattern> pattern = PathPattern::Parse(text);
    if (pattern.ok()) return pattern;
    return absl::InvalidArgumentError(StrCat(name, ": the pattern '", text, "' ", pattern.status().message()));
  };
  DISTILL_ASSIGN_OR_RETURN(const PathPattern images, parse(key, plan.images));
  PathPattern labels = images;
  if (labelled) {
    DISTILL_ASSIGN_OR_RETURN(labels, parse(StrCat("data.pairs.", request.name, ".labels"), plan.labels));
    if (labels.stars() != images.stars()) {
      return absl::InvalidArgumentError(StrCat("data.pairs.", request.name, ": ", images.stars(), " stars in images, ",
                                               labels.stars(), " in labels"));
    }
  }
  SegmentationFiles files{.source = StrCat(request.folder, "/", plan.images),
                          .label_source = StrCat(request.folder, "/", plan.labels),
                          .source_prefix = request.folder,
                          .label_prefix = request.folder};
  if (labelled && !plan.list.empty()) {
    DISTILL_RETURN_IF_ERROR(ReadListed(request, plan.list, images, labels, &files));
    return MakeSegmentationIndex(request, std::move(files));
  }
  const auto find = [&](const PathPattern& pattern) {
    return FindPatternFiles(request.root, request.folder, pattern, request.listing_report);
  };
  DISTILL_ASSIGN_OR_RETURN(PatternFiles found, find(images));
  PatternFiles found_labels;
  if (labelled) {
    DISTILL_ASSIGN_OR_RETURN(found_labels, find(labels));
  }
  const bool none = found.matches.empty() && found_labels.matches.empty();
  if (none && request.kind == SplitKind::kLabelledOrMissing) return SplitIndex();
  if (found.matches.empty()) {
    return absl::NotFoundError(StrCat("no file in '", request.folder, "' matches ", key, " '", plan.images, "'",
                                      found.missing.empty() ? "" : StrCat(" (there is no '", found.missing, "')"),
                                      "; put the images there, or correct the pattern or data.path"));
  }
  std::set<std::string> label_paths;
  for (const auto& [stars, file] : found_labels.matches) label_paths.insert(file.where);
  for (const std::string& other : found.others) {
    if (label_paths.contains(other)) continue;
    request.listing_report->Warn({StrCat("pictures beside those of ", key, " that it does not match, left out"), ""},
                                 other);
  }
  if (labelled) {
    Pair(request, labels, std::move(found), std::move(found_labels), &files);
    if (files.images.empty()) return SplitIndex();  // the report says why
  } else {
    for (auto& [stars, image] : found.matches) {
      files.names.push_back(image.name);
      files.images.push_back(std::move(image));
    }
  }
  return MakeSegmentationIndex(request, std::move(files));
}

}  // namespace distill
