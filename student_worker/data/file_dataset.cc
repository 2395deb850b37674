#include "student_worker/data/file_dataset.h"

#include <algorithm>
#include <utility>

#include "common/str_cat.h"
#include "student_worker/data/data_survey.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/picture_headers.h"
#include "student_worker/data/shrink.h"

namespace distill {
namespace {

const FileFault kStray{"JPEG files with stray bytes among their segments, decoded to the end", ""};
const FileFault kNoEnd{"JPEG files without an end mark, whose pixels were all there", ""};
// Of files whose headers were refused; that told all of it.
const FileFault kUnsound{"a picture that was refused when its header was read", ""};
const FileFault kChanged{"a picture that was changed while the job ran", "start the job anew"};

// Makes classes of the values, and kIgnoredPixel of those without a label. Tells of the first one that is beyond the
// student's `classes` (0: any).
std::optional<FileProblem> NormaliseIds(const std::string& where, uint32_t classes, const LabelIds& label_ids,
                                        uint32_t width, std::vector<uint8_t>* ids) {
  const uint32_t limit = classes == 0 ? kIgnoredPixel : std::min<uint32_t>(classes, kIgnoredPixel);
  for (size_t i = 0; i < ids->size(); ++i) {
    uint8_t& id = (*ids)[i];
    const uint16_t label = label_ids.ClassOf(id);
    if (label < limit) {
      id = static_cast<uint8_t>(label);
    } else if (label == LabelIds::kNone) {
      id = kIgnoredPixel;
    } else if (label_ids.renumbers()) {  // label maps name classes of the student alone
      return FileProblem{
          {StrCat("ids beyond the student's ", limit, " classes (data.reduce_zero_label makes them of ids 1 to ", limit,
                  "; data.ignore_label is ", label_ids.ignore_label(), ")"),
           "raise num_classes if it is a class; set data.ignore_label to it if it means no label; else "
           "correct the files",
           StatusCode::kInvalidArgument},
          where,
          StrCat("id ", int{id}, " in row ", i / width, ", column ", i % width, " from 0")};
    } else {
      return FileProblem{{StrCat("class ids beyond the student's ", limit, " classes (ids 0 to ", limit - 1,
                                 ", data.ignore_label is ", label_ids.ignore_label(), ")"),
                          "raise num_classes if it is a class (where 0 means nothing and classes begin with 1: "
                          "data.reduce_zero_label); "
                          "set data.ignore_label to it if it means no label; number it otherwise with data.label_map; "
                          "else correct the "
                          "files",
                          StatusCode::kInvalidArgument},
                         where,
                         StrCat("id ", int{id}, " in row ", i / width, ", column ", i % width, " from 0")};
    }
  }
  return std::nullopt;
}

}  // namespace

const FileFault kDamagedPicture{"pictures that cannot be decoded", "fetch them again, convert them, or remove them"};

FileFault UnreadableFault(const Status& why) {
  return {StrCat("unreadable, as ", ToStd(why.message())), "", why.code()};
}

Status ToStatus(const FileProblem& problem) {
  std::string text = StrCat("'", problem.where, "': ", problem.fault.what);
  if (!problem.detail.empty()) StrAppend(&text, " (", problem.detail, ")");
  if (!problem.fault.remedy.empty()) StrAppend(&text, "; ", problem.fault.remedy);
  return Status(problem.fault.code, text);
}

void RefuseOrSkip(const SplitRequest& request, const FileProblem& problem) {
  if (problem.fault.code == StatusCode::kDataLoss && request.bad_images->skips()) {
    const std::string why = StrCat(problem.fault.what, problem.detail.empty() ? "" : ": ", problem.detail);
    // Whether they are too many is judged when all were looked at.
    (void)request.bad_images->Note(problem.where, absl::DataLossError(why));
  } else {
    request.report->Refuse(problem.fault, problem.where, problem.detail);
  }
}

void FileList::Add(ImageFile file) {
  const bool inside = file.where.starts_with(source_);
  names_.append(inside ? file.where.substr(source_.size()) : file.where);
  entries_.push_back({names_.size(), file.size, file.offset, !file.archive.empty(), !inside});
  if (file.content != nullptr) contents_.resize(entries_.size());
  if (!contents_.empty()) {
    contents_.resize(entries_.size());
    contents_.back() = std::move(file.content);
  }
}

ImageFile FileList::Get(size_t index) const {
  const Entry& entry = entries_[index];
  const uint64_t begin = index == 0 ? 0 : entries_[index - 1].name_end;
  std::string name = names_.substr(begin, entry.name_end - begin);
  ImageFile file{.where = entry.whole_name ? std::move(name) : source_ + name, .size = entry.size};
  if (entry.in_archive) {
    file.archive = source_;
    file.offset = entry.offset;
  }
  if (!contents_.empty()) file.content = contents_[index];
  return file;
}

FileDataset::FileDataset(Options options)
    : options_(std::move(options)), files_(options_.source), label_files_(options_.label_source) {
  for (ImageFile& file : options_.files) files_.Add(std::move(file));
  for (ImageFile& file : options_.label_files) label_files_.Add(std::move(file));
  options_.files = {};
  options_.label_files = {};
  classes_ = options_.classes;
}

uint64_t FileDataset::decoded_bytes() const {
  return options_.pixels / options_.shrink / options_.shrink * (options_.channels + (has_label_maps() ? 1 : 0));
}

void FileDataset::Keep(CacheMode mode, std::shared_ptr<CacheBudget> budget) {
  cache_ = mode;
  budget_ = std::move(budget);
  if (mode == CacheMode::kDecoded) decoded_.resize(size());
  // Pictures first, then their label maps.
  if (mode == CacheMode::kEncoded) encoded_.resize(files_.size() + label_files_.size());
}

std::shared_ptr<const std::string> FileDataset::Bytes(const FileList& list, size_t index, ImageFile* file,
                                                      Status* error) const {
  *file = list.Get(index);
  if (file->content != nullptr) return file->content;
  const size_t slot = &list == &files_ ? index : files_.size() + index;
  const bool keeps = cache_ == CacheMode::kEncoded;
  if (keeps) {
    absl::MutexLock lock(&MutexOf(slot));
    if (encoded_[slot] != nullptr) return encoded_[slot];
  }
  auto bytes = ReadImageBytes(*file, kMaxFileBytes);
  if (!bytes.ok()) {
    *error = bytes.status();
    return nullptr;
  }
  if (keeps) {
    absl::MutexLock lock(&MutexOf(slot));
    if (encoded_[slot] == nullptr && budget_->Take((*bytes)->capacity())) encoded_[slot] = *bytes;
  }
  return *bytes;
}

std::optional<FileProblem> FileDataset::LoadLabelMap(uint64_t index, Picture* out, Notes* notes) const {
  ImageFile file;
  Status error;
  const auto bytes = Bytes(label_files_, index, &file, &error);
  if (bytes == nullptr) return FileProblem{UnreadableFault(error), file.where, ""};
  std::vector<uint8_t> ids(out->plane());
  const Status decoded = DecodeClassIds(*bytes, out->height, out->width, ids.data());
  if (!decoded.ok()) {
    return FileProblem{
        {"files that are no label maps", "", decoded.code()}, file.where, std::string(ToStd(decoded.message()))};
  }
  if (auto problem = NormaliseIds(file.where, options_.classes, options_.label_ids, out->width, &ids)) return problem;
  out->label_map = std::move(ids);
  if (options_.shrink > 1) {
    std::vector<uint8_t> small(out->plane() / options_.shrink / options_.shrink);
    ShrinkLabelMap(out->height, out->width, options_.shrink, out->label_map.data(), small.data());
    out->label_map = std::move(small);
  }
  if (notes->pixels_of_class != nullptr) {
    for (const uint8_t id : out->label_map) ++(*notes->pixels_of_class)[id];
  }
  return std::nullopt;
}

std::optional<FileProblem> FileDataset::Load(uint64_t index, Picture* out, Notes* notes) const {
  ImageFile file;
  if (!options_.sound[index]) return FileProblem{kUnsound, files_.Get(index).where, ""};
  Status error;
  const auto bytes = Bytes(files_, index, &file, &error);
  if (bytes == nullptr) return FileProblem{UnreadableFault(error), file.where, ""};
  const Status status = DecodeImage(*bytes, options_.channels, out, &notes->decoded);
  if (!status.ok()) return FileProblem{kDamagedPicture, file.where, std::string(ToStd(status.message()))};
  const bool other = options_.height > 0 && (out->height != options_.height || out->width != options_.width);
  const uint32_t shrink = options_.shrink;
  if (other || out->height % shrink != 0 || out->width % shrink != 0) {
    return FileProblem{kChanged, file.where, ""};
  }
  if (has_label_maps()) {
    if (auto problem = LoadLabelMap(index, out, notes)) return problem;
  }
  if (shrink > 1) {
    std::vector<uint8_t> small(out->pixels.size() / shrink / shrink);
    ShrinkImage(out->channels, out->height, out->width, shrink, out->pixels.data(), small.data());
    out->pixels = std::move(small);
    out->height /= shrink;
    out->width /= shrink;
  }
  return std::nullopt;
}

std::shared_ptr<const FileDataset::Kept> FileDataset::KeptOf(uint64_t index) const {
  if (cache_ != CacheMode::kDecoded) return nullptr;
  absl::MutexLock lock(&MutexOf(index));
  return decoded_[index];
}

void FileDataset::KeepCopy(uint64_t index, const Picture& picture, bool reducible) const {
  if (cache_ != CacheMode::kDecoded || full_) return;
  absl::MutexLock lock(&MutexOf(index));
  if (decoded_[index] != nullptr) return;  // another reader was first
  if (budget_->Take(picture.bytes())) {
    decoded_[index] = std::make_shared<const Kept>(Kept{picture, reducible});
  } else {
    full_ = true;
  }
}

Status FileDataset::Read(uint64_t index, Picture* out) const {
  if (const auto kept = KeptOf(index)) {
    *out = kept->picture;
    return OkStatus();
  }
  Notes notes;
  if (const auto problem = Load(index, out, &notes)) return ToStatus(*problem);
  KeepCopy(index, *out, notes.decoded.reducible);
  return OkStatus();
}

Status FileDataset::ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const {
  if (options_.shrink > 1) return Dataset::ReadPart(index, choose, out, part);
  // Kept pictures come whole: the first reading decodes all of them.
  const bool keeps = cache_ == CacheMode::kDecoded;
  if (const auto kept = KeptOf(index)) {
    *part = ChooseOf(kept->picture, choose);
    if (!kept->reducible || ReductionOf(part->wanted) == 1) {
      *out = kept->picture;
      return OkStatus();
    }
  } else if (keeps && !full_) {
    Notes notes;
    if (const auto problem = Load(index, out, &notes)) return ToStatus(*problem);
    KeepCopy(index, *out, notes.decoded.reducible);
    *part = ChooseOf(*out, choose);
    if (!notes.decoded.reducible || ReductionOf(part->wanted) == 1) return OkStatus();
  }
  const auto fail = [](const FileProblem& problem) { return ToStatus(problem); };
  if (!options_.sound[index]) return fail({kUnsound, files_.Get(index).where, ""});
  ImageFile file;
  Status error;
  const auto bytes = Bytes(files_, index, &file, &error);
  if (bytes == nullptr) return fail({UnreadableFault(error), file.where, ""});
  const Status decoded = DecodePart(*bytes, options_.channels, choose, out, part);
  if (!decoded.ok()) return fail({kDamagedPicture, file.where, std::string(ToStd(decoded.message()))});
  if (options_.height > 0 && (part->height != options_.height || part->width != options_.width)) {
    return fail({kChanged, file.where, ""});
  }
  return OkStatus();
}

void FileDataset::Preload(const SplitRequest& request) {
  absl::Mutex mutex;  // of pixels_of_class_
  const bool keeps = cache_ == CacheMode::kDecoded;
  const Status status = request.threads->ForEach(size(), [&](size_t i) -> Status {
    DISTILL_RETURN_IF_ERROR(request.report->wanted());
    if (!options_.sound[i]) return OkStatus();
    Picture picture;
    std::array<uint64_t, 256> count = {};
    Notes notes{.pixels_of_class = &count};
    if (const auto problem = Load(i, &picture, &notes)) {
      RefuseOrSkip(request, *problem);
      return OkStatus();
    }
    if (notes.decoded.stray_bytes) request.report->Warn(kStray, files_.Get(i).where);
    if (notes.decoded.no_end_mark) request.report->Warn(kNoEnd, files_.Get(i).where);
    if (request.survey != nullptr) request.survey->Add(request.name, options_.labels[i], picture);
    if (keeps && budget_->Take(picture.bytes())) {
      // Of parts that may be reduced the file is read again.
      if (!(request.takes_parts && notes.decoded.reducible)) files_.DropContent(i);
      if (has_label_maps()) label_files_.DropContent(i);
      decoded_[i] = std::make_shared<const Kept>(Kept{std::move(picture), notes.decoded.reducible});
    }
    if (!has_label_maps()) return OkStatus();
    absl::MutexLock lock(&mutex);
    for (size_t id = 0; id < count.size(); ++id) pixels_of_class_[id] += count[id];
    return OkStatus();
  });
  if (!status.ok()) request.report->Refuse(status);
}

}  // namespace distill
