// What the readers are asked for by dataset.cc, and what they hand back: one split, decoded.
#ifndef DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_
#define DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/hash/sha256.h"
#include "common/status.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/dataset.h"

namespace distill {

// Without pixels where the request's report holds a refusal: what can be told of the split is told there then.
struct LoadedSplit {
  uint32_t channels = 0, height = 0, width = 0;    // as they stay in memory: after shrinking
  std::vector<uint8_t> pixels;                     // [labels.size(), C, H, W]
  std::vector<int64_t> labels;                     // one an image: >= 0, or all kNoLabel; empty: the split is missing
  std::vector<uint8_t> label_maps;                 // segmentation folders: [labels.size(), H, W]; else empty
  std::vector<std::string> class_names;            // image folders: by label; else empty
  uint64_t found = 0;                              // images, before `subset` chose from them
  std::array<uint64_t, 256> pixels_of_class = {};  // of the label maps, by class id; the last: without a label
  std::vector<bool> label_found;                   // idx: by label, before `subset` chose; else empty
  std::string digest;                              // of the images found: see IndexDigest
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

struct SplitRequest {
  std::string root;    // all data
  std::string folder;  // below `root`: that of DataPlan.path
  std::string name;    // "train", "test", or DataPlan.unlabelled; readers say where that lies
  SplitKind kind = SplitKind::kLabelled;
  SubsetFunction subset;
  WantedImages want;
  uint32_t ignore_label = kIgnoredPixel;
  uint32_t shrink = 1;
  uint64_t max_bytes = kMaxDatasetBytes;  // for pixels and label maps; an archive's files may take as much again
  DataReport* report = nullptr;  // not owned; outlives the request. Gets all that is wrong or odd with single files
};

// Errors of all readers are as OpenDataset says. What ends the reading of a split is their status; else what is wrong
// is in the request's report.

// idx_reader.cc: `folder`/NAME-images-idx3-ubyte[.gz] and, when labelled, NAME-labels-idx1-ubyte[.gz]; NAME is t10k for
// "test".
StatusOr<LoadedSplit> ReadIdxSplit(const SplitRequest& request);
// image_folder_reader.cc: `folder`/`name`/ or `folder`/`name`.tar[.gz].
StatusOr<LoadedSplit> ReadImageFolderSplit(const SplitRequest& request);
// segmentation_folder_reader.cc: `folder`/images/`name` and, when labelled, `folder`/labels/`name`, each a folder or an
// archive; "test" stands for "val" when there is no images/test.
StatusOr<LoadedSplit> ReadSegmentationFolderSplit(const SplitRequest& request);

// Refuses images of a shape that the request does not want, in a sentence about all of `source`; true when it is
// wanted. `channels`, `height`, `width`: as the files have them, before shrinking.
bool CheckShape(const SplitRequest& request, const std::string& source, uint32_t channels, uint32_t height,
                uint32_t width);

// kResourceExhausted when `bytes` of the images in `source` are more than the request allows.
Status CheckSplitBytes(const SplitRequest& request, const std::string& source, uint64_t bytes);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_
