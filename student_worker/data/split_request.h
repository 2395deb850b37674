// What the readers are asked for by dataset.cc, and what they hand back: the index of one split.
#ifndef DISTILL_STUDENT_WORKER_DATA_SPLIT_REQUEST_H_
#define DISTILL_STUDENT_WORKER_DATA_SPLIT_REQUEST_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/hash/sha256.h"
#include "common/status.h"
#include "student_worker/data/bad_images.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/label_ids.h"
#include "student_worker/data/read_threads.h"

namespace distill {

class FileDataset;

// What was found of a split: which pictures, where they lie, and their labels.
struct SplitIndex {
  uint32_t channels = 0, height = 0, width = 0;  // after shrinking; height, width 0: they differ
  std::vector<int64_t> labels;                   // one an image: >= 0, or all kNoLabel; empty: the split is missing
  std::vector<uint8_t> pixels;  // idx, cifar: [labels.size(), C, H, W]; empty where the request's report has a refusal
  std::shared_ptr<FileDataset> files;    // folders: its pictures; null where the student cannot take them
  std::vector<std::string> class_names;  // image folders, lists of class names: by label; else empty
  std::string label_source;              // segmentation folders: where the label maps lie
  uint64_t found = 0;                    // images, before `subset` chose from them
  std::vector<bool> label_found;         // idx, cifar: by label, before `subset` chose; else empty
  std::string digest;                    // of the images found: see IndexDigest
};

// SHA-256 of the images of a split in their order: the part of DataSplits.digest that one split gives.
class IndexDigest {
 public:
  // `name`: where the image lies in its split. `size`, `map_size`: bytes of its file and its label map's, as far as it
  // has them.
  void Add(const std::string& name, int64_t label, uint64_t size, uint64_t map_size);
  std::string Hex() { return hash_.HexDigest(); }  // once

 private:
  Sha256 hash_;
};

enum class SplitKind {
  kLabelled,
  kLabelledOrMissing,  // nothing there is no error: the split has no labels then
  kUnlabelled,
};

// Which of `size` images to keep, and in which order.
using SubsetFunction = std::function<std::vector<uint32_t>(uint32_t size)>;

// What belongs to a split of the images that lie in its place.
enum class SplitPart {
  kAll,
  kAllButTest,  // those that ChooseTestImages leaves
  kTest,        // those that it chooses
};

struct SplitRequest {
  std::string root;    // all data
  std::string folder;  // below `root`: that of DataPlan.path
  std::string name;    // "train", "test", or DataPlan.unlabelled; readers say where that lies
  SplitKind kind = SplitKind::kLabelled;
  SubsetFunction subset;
  SplitPart part = SplitPart::kAll;
  SplitPlan split;  // where `part` is not kAll
  WantedImages want;
  LabelIds label_ids;
  SplitFiles files;  // ReadSegmentationPairsSplit: of the split; of unlabelled images no more than `images`
  uint32_t shrink = 1;
  bool any_size = false;     // the job's transforms bring all pictures to one size
  bool takes_parts = false;  // ReadPart will be asked for
  // None is owned; they outlive the request.
  DataReport* report = nullptr;          // gets all that is wrong or odd with single files
  DataReport* listing_report = nullptr;  // of it, what is so with those that are listed
  BadImages* bad_images = nullptr;
  ReadThreads* threads = nullptr;
  DataSurvey* survey = nullptr;  // null: none
};

// The indices of the images that belong to request.part, in their order. Warns of classes of which no image is a test
// image.
std::vector<uint32_t> PartOf(const SplitRequest& request, const std::vector<std::string>& names,
                             const std::vector<int64_t>& labels);
// Refuses a place of test images of the set's own beside DataPlan.split. `source`: it; empty: there is none.
void RefuseOwnTestImages(const SplitRequest& request, const std::string& source);

// Errors of all readers are as OpenDataset says. What ends the reading of a split is their status; else what is wrong
// is in the request's report.

// idx_reader.cc: `folder`/NAME-images-idx3-ubyte[.gz] and, when labelled, NAME-labels-idx1-ubyte[.gz]; NAME is t10k for
// "test".
StatusOr<SplitIndex> ReadIdxSplit(const SplitRequest& request);
// cifar_reader.cc: the .bin files in `folder`, below it, or in an archive that `folder` is or holds.
StatusOr<SplitIndex> ReadCifarSplit(const SplitRequest& request);
// image_list_reader.cc: the pictures that `folder`/`name`.tsv or .csv names.
StatusOr<SplitIndex> ReadImageListSplit(const SplitRequest& request);
// image_folder_reader.cc: `folder`/`name`/ or `folder`/`name`.tar[.gz].
StatusOr<SplitIndex> ReadImageFolderSplit(const SplitRequest& request);
// segmentation_folder_reader.cc: `folder`/images/`name` and, when labelled, `folder`/labels/`name`, each a folder or an
// archive; "test" stands for "val" when there is no images/test.
StatusOr<SplitIndex> ReadSegmentationFolderSplit(const SplitRequest& request);
// segmentation_pairs_reader.cc: the files below `folder` that request.files names.
StatusOr<SplitIndex> ReadSegmentationPairsSplit(const SplitRequest& request);

// Refuses label maps that teach nothing although they can be read: the student would be measured at 100 % at once.
// `pixels`: of each class id, the last without a label, in all label maps of `source`.
void CheckLabelsSayMore(const SplitRequest& request, const std::string& source,
                        const std::array<uint64_t, 256>& pixels);

// Refuses images of a shape that the request does not want, in a sentence about all of `source`; true when it is
// wanted. `channels`, `height`, `width`: as the files have them, before shrinking.
bool CheckShape(const SplitRequest& request, const std::string& source, uint32_t channels, uint32_t height,
                uint32_t width);

// The part of CheckShape that is about channels.
bool CheckChannels(const SplitRequest& request, const std::string& source, uint32_t channels);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_SPLIT_REQUEST_H_
