// Image lists: NAME.tsv or NAME.csv says which pictures there are, and the class of each.
#include "student_worker/data/image_list.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/labelled_pictures.h"
#include "student_worker/data/listed_files.h"
#include "student_worker/data/read_file.h"
#include "student_worker/data/split_request.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxListBytes = 4ull << 30;
constexpr int64_t kMaxClass = 1 << 24;

// Splits a line. CSV: fields may stand in quotes, in which two quotes are one. Nullopt: a quote is not closed, or
// something stands beside it.
std::optional<std::vector<std::string>> Fields(std::string_view line, bool csv) {
  std::vector<std::string> fields(1);
  const char separator = csv ? ',' : '\t';
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == separator) {
      fields.emplace_back();
    } else if (csv && line[i] == '"' && fields.back().empty()) {
      for (++i;; ++i) {
        if (i >= line.size()) return std::nullopt;
        if (line[i] == '"' && (i + 1 >= line.size() || line[i + 1] != '"')) break;
        if (line[i] == '"') ++i;
        fields.back().push_back(line[i]);
      }
      if (i + 1 < line.size() && line[i + 1] != separator) return std::nullopt;
    } else {
      fields.back().push_back(line[i]);
    }
  }
  return fields;
}

bool IsHeader(const std::vector<std::string>& fields) {
  const std::string first = absl::AsciiStrToLower(fields[0]);
  return first == "path" || first == "file" || first == "filename" || first == "image";
}

}  // namespace

StatusOr<std::vector<ListedImage>> ParseImageList(std::string_view text, bool csv, bool labelled,
                                                  const std::string& where) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a byte order mark
  std::vector<ListedImage> images;
  std::map<std::string, size_t, std::less<>> seen;  // path to place in `images`
  const char* const columns = labelled ? "a path and a class" : "a path";
  bool first = true;
  for (uint64_t line_number = 1; !text.empty(); ++line_number) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const auto wrong = [&](const std::string& what) {
      return absl::DataLossError(StrCat("line ", line_number, " of '", where, "' ", what));
    };
    if (line.find('\0') != std::string_view::npos) return wrong("holds a zero byte: it is no text file");
    const auto fields = Fields(line, csv);
    if (!fields) return wrong("has a quote that is not closed, or something beside it");
    const bool header = first && IsHeader(*fields);
    first = false;
    if (header) continue;
    if (fields->size() != 2 && (labelled || fields->size() != 1)) {
      return wrong(StrCat("has ", fields->size(), fields->size() == 1 ? " column" : " columns", "; it needs ", columns,
                          csv ? ", separated by a comma" : ", separated by a tab"));
    }
    if (fields->front().empty()) return wrong("has no path");
    if (labelled && fields->back().empty()) return wrong("has no class");
    ListedImage image{fields->front(), labelled ? fields->back() : "", line_number};
    const auto [before, added] = seen.emplace(image.path, images.size());
    if (!added) {
      const ListedImage& other = images[before->second];
      return absl::FailedPreconditionError(
          StrCat("'", where, "' has '", image.path, "' in line ", other.line, " and in line ", line_number,
                 other.class_name == image.class_name
                     ? "; it would count twice: remove one"
                     : StrCat(", as '", other.class_name, "' and as '", image.class_name, "'; remove one")));
    }
    images.push_back(std::move(image));
  }
  return images;
}

StatusOr<std::vector<int64_t>> ClassesOfList(const std::vector<ListedImage>& images, const std::string& where,
                                             std::vector<std::string>* names) {
  names->clear();
  std::set<std::string> sorted;
  const ListedImage* number = nullptr;
  const ListedImage* name = nullptr;
  std::vector<int64_t> labels;
  for (const ListedImage& image : images) {
    int64_t label = 0;
    const bool is_number =
        absl::SimpleAtoi(image.class_name, &label) && StrCat(label) == image.class_name && label >= 0;
    if (is_number && number == nullptr) number = &image;
    if (!is_number && name == nullptr) name = &image;
    if (is_number && label > kMaxClass) {
      return absl::DataLossError(
          StrCat("line ", image.line, " of '", where, "' has class ", label, ", over ", kMaxClass));
    }
    labels.push_back(label);
    sorted.insert(image.class_name);
  }
  if (number != nullptr && name != nullptr) {
    return absl::FailedPreconditionError(StrCat("the classes in '", where, "' are partly numbers (line ", number->line,
                                                ": ", number->class_name, ") and partly names (line ", name->line, ": ",
                                                name->class_name,
                                                "); give all of them as numbers from 0, or all as names"));
  }
  if (name == nullptr) return labels;
  names->assign(sorted.begin(), sorted.end());
  for (size_t i = 0; i < images.size(); ++i) {
    labels[i] = std::lower_bound(names->begin(), names->end(), images[i].class_name) - names->begin();
  }
  return labels;
}

namespace {

// NAME.tsv or NAME.csv in the folder; empty: neither. A warning when both are there.
StatusOr<std::string> FindList(const SplitRequest& request, const std::string& name) {
  std::vector<std::string> found;
  for (const char* const ending : {".tsv", ".csv"}) {
    const std::string path = (fs::path(request.folder) / (name + ending)).string();
    auto real = ResolveBelow(request.root, path);
    if (real.ok()) {
      found.push_back(*std::move(real));
    } else if (!absl::IsNotFound(real.status())) {
      return real.status();
    }
  }
  if (found.size() > 1) {
    request.listing_report->Warn(StrCat("'", found[0], "' is read, not '", found[1], "' beside it."));
  }
  return found.empty() ? "" : found[0];
}

}  // namespace

StatusOr<SplitIndex> ReadImageListSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  SplitIndex split;
  DISTILL_ASSIGN_OR_RETURN(const std::string list, FindList(request, request.name));
  if (request.part == SplitPart::kTest) {
    DISTILL_ASSIGN_OR_RETURN(const std::string own, FindList(request, "test"));
    RefuseOwnTestImages(request, own);
  }
  if (list.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (list.empty()) {
    return absl::NotFoundError(StrCat("no '", request.name, ".tsv' or '", request.name, ".csv' in '", request.folder,
                                      "'; put the list there or correct ", labelled ? "data.path" : "data.unlabelled",
                                      " (data.format is image_list)"));
  }
  auto text = ReadFileHead(list, kMaxListBytes);
  if (!text.ok()) return Status(text.status().code(), StrCat("'", list, "': ", ToStd(text.status().message())));
  const bool csv = absl::AsciiStrToLower(list).ends_with(".csv");
  DISTILL_ASSIGN_OR_RETURN(const std::vector<ListedImage> listed, ParseImageList(*text, csv, labelled, list));
  text->clear();
  if (listed.empty()) return absl::NotFoundError(StrCat("'", list, "' lists no image"));
  std::vector<int64_t> labels(listed.size(), kNoLabel);
  if (labelled) {
    DISTILL_ASSIGN_OR_RETURN(labels, ClassesOfList(listed, list, &split.class_names));
  }
  std::vector<std::string> names;
  for (const ListedImage& image : listed) names.push_back(image.path);
  const std::vector<uint32_t> part = PartOf(request, names, labels);
  if (part.empty()) {
    return absl::FailedPreconditionError(
        StrCat("data.split leaves no image of '", list, "'; it needs two or more of a class"));
  }
  split.found = part.size();
  IndexDigest digest;
  std::vector<ImageFile> files;
  ListedFiles places(request, "listed pictures", "correct the list (its paths begin at its own folder), or fetch them");
  for (const uint32_t i : part) {
    DISTILL_RETURN_IF_ERROR(request.report->wanted());
    files.push_back(places.Find(listed[i].path, StrCat("line ", listed[i].line)));
    digest.Add(names[i], labels[i], files.back().size, 0);
    if (labelled && split.class_names.empty() && request.want.classes > 0 && labels[i] >= request.want.classes) {
      return absl::InvalidArgumentError(StrCat("line ", listed[i].line, " of '", list, "' has class ", labels[i],
                                               ", which is not below the student's ", request.want.classes,
                                               " classes (numbers begin with 0); set num_classes"));
    }
  }
  split.digest = digest.Hex();
  std::vector<ImageFile> chosen;
  for (const uint32_t index : request.subset(static_cast<uint32_t>(part.size()))) {
    chosen.push_back(std::move(files[index]));
    split.labels.push_back(labels[part[index]]);
  }
  SetPictures(request, list, request.folder, std::move(chosen), &split);
  return split;
}

}  // namespace distill
