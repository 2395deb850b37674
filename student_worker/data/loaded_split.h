// What the readers are asked for by dataset.cc, and what they hand back: one split, decoded.
#ifndef DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_
#define DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/data/dataset.h"

namespace distill {

struct LoadedSplit {
  uint32_t channels = 0, height = 0, width = 0;  // as they stay in memory: after shrinking
  std::vector<uint8_t> pixels;                   // [labels.size(), C, H, W]
  std::vector<int64_t> labels;                   // one an image: >= 0, or all kNoLabel; empty: the split is missing
  std::vector<uint8_t> label_maps;               // segmentation folders: [labels.size(), H, W]; else empty
  std::vector<std::string> class_names;          // image folders: by label; else empty
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
  uint32_t num_classes = 0;  // of the student; 0: any
  uint32_t ignore_label = kIgnoredPixel;
  uint32_t shrink = 1;
  uint64_t max_bytes = kMaxDatasetBytes;  // for pixels and label maps; the compressed files may take as much again
};

// Errors of all readers are as OpenDataset says.

// idx_reader.cc: `folder`/NAME-images-idx3-ubyte[.gz] and, when labelled, NAME-labels-idx1-ubyte[.gz]; NAME is t10k for
// "test".
StatusOr<LoadedSplit> ReadIdxSplit(const SplitRequest& request);
// image_folder_reader.cc: `folder`/`name`/ or `folder`/`name`.tar[.gz].
StatusOr<LoadedSplit> ReadImageFolderSplit(const SplitRequest& request);
// segmentation_folder_reader.cc: `folder`/images/`name` and, when labelled, `folder`/labels/`name`, each a folder or an
// archive; "test" stands for "val" when there is no images/test.
StatusOr<LoadedSplit> ReadSegmentationFolderSplit(const SplitRequest& request);

// kResourceExhausted when `bytes` of the images in `source` are more than the request allows.
Status CheckSplitBytes(const SplitRequest& request, const std::string& source, uint64_t bytes);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_
