// The pictures of a split that lie in files or in an archive: an index of where they are. They are read and decoded
// when they are asked for.
#ifndef DISTILL_STUDENT_WORKER_DATA_FILE_DATASET_H_
#define DISTILL_STUDENT_WORKER_DATA_FILE_DATASET_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "student_worker/data/data_options.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/label_ids.h"
#include "student_worker/data/split_request.h"

namespace distill {

// What is wrong with one file.
struct FileProblem {
  FileFault fault;
  std::string where;
  std::string detail;
};
extern const FileFault kDamagedPicture;
FileFault UnreadableFault(const Status& why);
// As a status: "WHERE: FAULT (DETAIL); REMEDY".
Status ToStatus(const FileProblem& problem);
// Files that are damaged or no pictures (kDataLoss) go to request.bad_images where the job skips such; else, and once
// they are too many, to the report.
void RefuseOrSkip(const SplitRequest& request, const FileProblem& problem);

// Many ImageFiles in little memory: names are stored without what they have in common, one after another.
class FileList {
 public:
  // `source`: what the places of all files begin with.
  explicit FileList(std::string source) : source_(std::move(source)) {}
  void Add(ImageFile file);
  size_t size() const { return entries_.size(); }
  // Without folder and name.
  ImageFile Get(size_t index) const;
  // Gives up the content that Get(index) holds in memory.
  void DropContent(size_t index) {
    if (!contents_.empty()) contents_[index].reset();
  }

 private:
  struct Entry {
    uint64_t name_end = 0;  // in `names_`
    uint64_t size = 0;
    uint64_t offset = 0;
    bool in_archive = false;
    bool whole_name = false;  // it does not begin with `source_`
  };
  const std::string source_;
  std::string names_;
  std::vector<Entry> entries_;
  std::vector<std::shared_ptr<const std::string>> contents_;  // empty: none holds any
};

// Thread-safe once SetClasses and Preload have returned.
class FileDataset : public Dataset {
 public:
  struct Options {
    std::string source, label_source;    // label_source empty: no label maps
    std::vector<ImageFile> files;        // >= 1
    std::vector<ImageFile> label_files;  // as many, or none
    std::vector<bool> sound;             // by file: of the others Read() fails
    std::vector<int64_t> labels;
    uint32_t channels = 0;
    uint32_t height = 0, width = 0;  // as stored; 0: they differ
    uint64_t pixels = 0;             // of all sound files
    uint32_t shrink = 1;
    LabelIds label_ids;
    uint32_t classes = 0;  // of label maps, class ids beyond are refused; 0: any
  };
  explicit FileDataset(Options options);

  uint64_t size() const override { return files_.size(); }
  uint32_t channels() const override { return options_.channels; }
  uint32_t height() const override { return options_.height / options_.shrink; }
  uint32_t width() const override { return options_.width / options_.shrink; }
  uint32_t classes() const override { return classes_; }
  int64_t label(uint64_t index) const override { return options_.labels[index]; }
  bool has_label_maps() const override { return label_files_.size() > 0; }
  std::string Where(uint64_t index) const override { return files_.Get(index).where; }
  Status Read(uint64_t index, Picture* out) const override;
  // What is kept decoded is whole and unreduced: a part that may be reduced is decoded from its file even then, so that
  // a cache changes no pixel.
  Status ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const override;

  // Bytes of all pictures and label maps decoded.
  uint64_t decoded_bytes() const;
  void SetClasses(uint32_t classes) { classes_ = classes; }
  // What Read() keeps from now on, of all data sets that share `budget` together: the first pictures that are read,
  // until it is spent. (Each epoch reads each picture once, so that no other choice would save more.)
  void Keep(CacheMode mode, std::shared_ptr<CacheBudget> budget);

  // Reads every picture once, with request.threads: keeps it if Keep() says so, and tells the report of all that is
  // wrong or odd.
  void Preload(const SplitRequest& request);
  // After Preload, of the label maps: pixels of each class id, the last those without a label.
  const std::array<uint64_t, 256>& pixels_of_class() const { return pixels_of_class_; }

 private:
  struct Notes {
    DecodeNotes decoded;
    std::array<uint64_t, 256>* pixels_of_class = nullptr;
  };
  std::shared_ptr<const std::string> Bytes(const FileList& list, size_t index, ImageFile* file, Status* error) const;
  // A decoded picture that stays in memory.
  struct Kept {
    Picture picture;
    bool reducible = false;  // DecodeNotes
  };
  std::shared_ptr<const Kept> KeptOf(uint64_t index) const;
  // Keeps a copy, where there is room.
  void KeepCopy(uint64_t index, const Picture& picture, bool reducible) const;
  std::optional<FileProblem> Load(uint64_t index, Picture* out, Notes* notes) const;
  std::optional<FileProblem> LoadLabelMap(uint64_t index, Picture* out, Notes* notes) const;
  absl::Mutex& MutexOf(uint64_t index) const { return mutexes_[index % mutexes_.size()]; }

  Options options_;  // its lists are empty
  FileList files_, label_files_;
  uint32_t classes_ = 0;
  std::array<uint64_t, 256> pixels_of_class_ = {};
  CacheMode cache_ = CacheMode::kNone;
  std::shared_ptr<CacheBudget> budget_;  // shared with the other splits
  // By index; guarded by MutexOf(index).
  mutable std::vector<std::shared_ptr<const Kept>> decoded_;
  mutable std::vector<std::shared_ptr<const std::string>> encoded_;
  mutable std::array<absl::Mutex, 64> mutexes_;
  // A picture did not fit: the others are not decoded whole for the cache's sake any more.
  mutable std::atomic<bool> full_ = false;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_FILE_DATASET_H_
