// The index of a split of images with label maps, made of files that were found and paired.
#ifndef DISTILL_STUDENT_WORKER_DATA_SEGMENTATION_INDEX_H_
#define DISTILL_STUDENT_WORKER_DATA_SEGMENTATION_INDEX_H_

#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/split_request.h"

namespace distill {

struct SegmentationFiles {
  std::string source, label_source;         // for messages: where they lie
  std::string source_prefix, label_prefix;  // what all paths begin with; of files in an archive: the archive
  std::vector<std::string> names;           // of the images, below the split: for DataPlan.split and the digest
  std::vector<ImageFile> images;            // as many
  std::vector<ImageFile> labels;            // as many, or (unlabelled) none
};

// Takes the images of request.part, chooses from them with request.subset, and reads their headers; `files` is not
// empty and is left without its files. Errors as ReadHeaders. kFailedPrecondition: data.split leaves no image.
StatusOr<SplitIndex> MakeSegmentationIndex(const SplitRequest& request, SegmentationFiles files);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_SEGMENTATION_INDEX_H_
