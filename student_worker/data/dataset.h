// Images of one split, decoded into memory: what the sampler draws from.
//
// Two formats (DataPlan.format):
//   "idx"           MNIST-style IDX files, gzipped or plain, in one folder: train-images-idx3-ubyte[.gz],
//                   train-labels-idx1-ubyte[.gz], t10k-images-idx3-ubyte[.gz], t10k-labels-idx1-ubyte[.gz]. Grey images,
//                   C = 1.
//   "image_folder"  FOLDER/{train,test}/CLASS/NAME.{jpg,jpeg,png}, or FOLDER/{train,test}.tar[.gz] holding
//                   CLASS/NAME.jpg. Classes are numbered in alphabetical (byte) order of their names, images inside a
//                   class too. Grey files in a colour set are spread to three channels, alpha is dropped, 16-bit PNGs
//                   are cut to 8 bits. An image in no class folder is refused.
// Training images without labels (DataPlan.unlabelled = NAME), beside those of the training split:
//   "idx"           NAME-images-idx3-ubyte[.gz] in the same folder.
//   "image_folder"  FOLDER/NAME, or FOLDER/NAME.tar[.gz]: files in it and in its folders, in alphabetical order.
// All images of a data set have the same height and width. Decoded pixels of all splits together may take at most
// kMaxDatasetBytes.
#ifndef DISTILL_STUDENT_WORKER_DATA_DATASET_H_
#define DISTILL_STUDENT_WORKER_DATA_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

inline constexpr uint64_t kMaxDatasetBytes = 16ull << 30;
inline constexpr int64_t kNoLabel = -1;

// Immutable, thread-safe.
class Dataset {
 public:
  virtual ~Dataset() = default;
  // Number of images, >= 1.
  virtual uint64_t size() const = 0;
  // Shape of each image.
  virtual uint32_t channels() const = 0;
  virtual uint32_t height() const = 0;
  virtual uint32_t width() const = 0;
  // Labels are in [0, classes()), or kNoLabel.
  virtual uint32_t classes() const = 0;
  // Copies image `index` as uint8 [C, H, W] row-major to `out`, which has room for image_bytes(). REQUIRES: index < size().
  virtual void CopyImage(uint64_t index, uint8_t* out) const = 0;
  // REQUIRES: index < size().
  virtual int64_t label(uint64_t index) const = 0;

  uint64_t image_bytes() const { return uint64_t{channels()} * height() * width(); }
};

// Shared: the pipeline's loader thread and the trainer both read them.
struct DataSplits {
  std::shared_ptr<const Dataset> train;  // all labelled; null: none, which only a plan with unlabelled images may have
  std::shared_ptr<const Dataset> test;   // all labelled
  std::shared_ptr<const Dataset> unlabelled;  // null: none
};

// Loads all splits into memory, decoding with two threads.
//
// plan.path is taken below `data_root` (an absolute path is allowed when it lies inside); neither "..", nor a symbolic
// link may lead out of the root. plan.train_limit keeps the first n images of a shuffle keyed by `seed` (SubsetOrder,
// so every rank keeps the same ones, in that order); plan.test_limit the first n of a shuffle keyed by 0, so that jobs
// of different seeds are tested on the same images. `num_classes` > 0: a label or class folder beyond it is refused
// (the student's head has that many outputs).
//
// kNotFound: a folder or file is missing (names the path and the remedy). kInvalidArgument: the path leaves the root,
// unknown format, or more classes than `num_classes`. kDataLoss: a file is damaged or truncated. kFailedPrecondition:
// files contradict each other (counts, sizes, class lists). kResourceExhausted: over kMaxDatasetBytes.
StatusOr<DataSplits> OpenDataset(const DataPlan& plan, const std::string& data_root, uint64_t seed, uint32_t num_classes = 0);

// A data set cut in two, by a shuffle keyed by `seed`: `count` images to measure on and the others to train on, each in
// the order of the whole. kInvalidArgument: not fewer than there are.
struct HeldOutSplit {
  std::shared_ptr<const Dataset> train;
  std::shared_ptr<const Dataset> held_out;
};
StatusOr<HeldOutSplit> HoldOut(std::shared_ptr<const Dataset> whole, uint64_t count, uint64_t seed);

// What the stages of a job draw from.
struct TrainingImages {
  std::shared_ptr<const Dataset> labelled;  // null: none
  std::shared_ptr<const Dataset> all;       // the labelled ones, with the same numbers, then those without labels
  std::shared_ptr<const Dataset> held_out;  // to measure on; null: none
};

// Puts `holdout` images aside: labelled ones, so that every stage can be measured on them; without any label, others.
// Errors as HoldOut.
StatusOr<TrainingImages> PrepareTrainingImages(const DataSplits& splits, uint64_t holdout, uint64_t seed);

// The images of one stage: all when it may use unlabelled ones or takes no step, else those with labels.
// kInvalidArgument, naming the stage: it needs labels and there are none, its images are fewer than a batch, or it
// reads labels and may use images without.
StatusOr<std::shared_ptr<const Dataset>> ImagesOfStage(const TrainingImages& images, const StagePlan& stage,
                                                       uint32_t batch_size);

// kInvalidArgument when images of `dataset` are not what `student` takes (channels, height, width) or have more classes than its head.
Status CheckDatasetFits(const Dataset& dataset, const ModelSpec& student);

// A data set from pixels in memory: `pixels` holds labels.size() images [C, H, W]. kInvalidArgument: sizes or labels
// contradict; labels are all in [0, classes) or all kNoLabel.
StatusOr<std::shared_ptr<const Dataset>> MakeMemoryDataset(uint32_t channels, uint32_t height, uint32_t width, uint32_t classes,
                                                           std::vector<uint8_t> pixels, std::vector<int64_t> labels);

// The real path of `path` below `root`, or an error as OpenDataset gives for it.
StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_DATASET_H_
