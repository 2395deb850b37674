// What the two readers hand to dataset.cc: one split, decoded.
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
  uint32_t channels = 0, height = 0, width = 0;
  std::vector<uint8_t> pixels;           // [labels.size(), C, H, W]
  std::vector<int64_t> labels;           // >= 0, or all kNoLabel
  std::vector<std::string> class_names;  // image folders: by label; IDX: empty
};

enum class SplitKind {
  kLabelled,
  kLabelledOrMissing,  // nothing there is no error: the split has no labels then
  kUnlabelled,
};

// Which of `size` images to keep, and in which order.
using SubsetFunction = std::function<std::vector<uint32_t>(uint32_t size)>;

// IDX files `prefix`-images-idx3-ubyte[.gz] and, when labelled, -labels-idx1-ubyte[.gz] in `folder` below `root`;
// errors as OpenDataset.
StatusOr<LoadedSplit> ReadIdxSplit(const std::string& root, const std::string& folder, const std::string& prefix,
                                   SplitKind kind, const SubsetFunction& subset, uint32_t num_classes);
// `folder`/`split`/ or `folder`/`split`.tar[.gz] below `root`; errors as OpenDataset.
StatusOr<LoadedSplit> ReadImageFolderSplit(const std::string& root, const std::string& folder, const std::string& split,
                                           SplitKind kind, const SubsetFunction& subset);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_LOADED_SPLIT_H_
