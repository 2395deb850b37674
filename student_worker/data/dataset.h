// Images of one split, decoded into memory: what the sampler draws from.
//
// Three formats (DataPlan.format):
//   "idx"                  MNIST-style IDX files, gzipped or plain, in one folder: train-images-idx3-ubyte[.gz],
//                          train-labels-idx1-ubyte[.gz], t10k-images-idx3-ubyte[.gz], t10k-labels-idx1-ubyte[.gz]. Grey
//                          images, C = 1.
//   "image_folder"         FOLDER/{train,test}/CLASS/NAME.{jpg,jpeg,png}, or FOLDER/{train,test}.tar[.gz] holding
//                          CLASS/NAME.jpg. Classes are numbered in alphabetical (byte) order of their names, images
//                          inside a class too. An image in no class folder is refused.
//   "segmentation_folder"  FOLDER/images/{train,test}/NAME.{jpg,jpeg,png} with the label maps FOLDER/labels/{the same}/
//                          NAME.png; "val" is taken where there is no images/test. A label map has the size of its
//                          image; it is a PNG, grey or with a palette, of 1, 2, 4 or 8 bits, and what it stores (of a
//                          palette: the index) is the class id. DataPlan.ignore_label stands for "no label". Images and
//                          label maps pair one to one: either without the other is refused. Images are numbered in
//                          alphabetical order. Each of the four folders may be a .tar or .tar.gz instead.
// In the two folder formats grey files in a colour set are spread to three channels, alpha is dropped and 16-bit PNGs
// are cut to 8 bits (label maps of such kinds are refused); and each side is divided by DataPlan.shrink at loading
// (shrink.h), which must divide it. A decoded picture is all that is held: its file's bytes go as it comes. Training
// images without labels (DataPlan.unlabelled = NAME), beside those of the training split:
//   "idx"                  NAME-images-idx3-ubyte[.gz] in the same folder.
//   "image_folder"         FOLDER/NAME, or FOLDER/NAME.tar[.gz]: files in it and in its folders, in alphabetical order.
//   "segmentation_folder"  FOLDER/images/NAME, in the same way.
// All images of a data set have the same height and width. Pixels and label maps of all splits together, as they are
// held (after shrinking), may take at most kMaxDatasetBytes.
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
inline constexpr int64_t kNoLabel = -1;        // of an image
inline constexpr uint8_t kIgnoredPixel = 255;  // in a label map: the pixel has no label

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
  // Labels and class ids are in [0, classes()), or kNoLabel and kIgnoredPixel.
  virtual uint32_t classes() const = 0;
  // Copies image `index` as uint8 [C, H, W] row-major to `out`, which has room for image_bytes(). REQUIRES: index <
  // size().
  virtual void CopyImage(uint64_t index, uint8_t* out) const = 0;
  // kNoLabel: the image has none, or a label map instead. REQUIRES: index < size().
  virtual int64_t label(uint64_t index) const = 0;
  // Whether each image has a label map: a class id or kIgnoredPixel for every pixel.
  virtual bool has_label_maps() const = 0;
  // Copies the label map of image `index` as uint8 [H, W] row-major to `out`, which has room for label_map_bytes().
  // REQUIRES: has_label_maps(), index < size().
  virtual void CopyLabelMap(uint64_t index, uint8_t* out) const = 0;

  uint64_t image_bytes() const { return uint64_t{channels()} * height() * width(); }
  uint64_t label_map_bytes() const { return uint64_t{height()} * width(); }
};

// Shared: the pipeline's loader thread and the trainer both read them. Labelled images have labels, or (segmentation
// folders) label maps.
struct DataSplits {
  std::shared_ptr<const Dataset> train;  // all labelled; null: none, which only a plan with unlabelled images may have
  std::shared_ptr<const Dataset> test;   // all labelled
  std::shared_ptr<const Dataset> unlabelled;  // null: none
  // What the job's owner should know of the files, though they can be used: one whole sentence each.
  std::vector<std::string> warnings = {};
  // SHA-256 (hex) of the data set's index: its splits, their class names, and the labels and sizes of their images in
  // order; of no path of this machine. Ranks of one job must have the same.
  std::string digest = {};
};

// Loads all splits into memory, decoding with two threads.
//
// plan.path is taken below `data_root` (an absolute path is allowed when it lies inside); neither "..", nor a symbolic
// link may lead out of the root. plan.train_limit keeps the first n images of a shuffle keyed by `seed` (SubsetOrder,
// so every rank keeps the same ones, in that order); plan.test_limit the first n of a shuffle keyed by 0, so that jobs
// of different seeds are tested on the same images. `num_classes` > 0: a label, class id or class folder beyond it is
// refused (the student's head has that many outputs); all class ids of a chosen image count, before shrinking.
//
// kNotFound: a folder or file is missing (names the path and the remedy). kInvalidArgument: the path leaves the root,
// unknown format, more classes than `num_classes`, ignore_label over 255, shrink 0 or (idx) over 1. kDataLoss: a file
// is damaged or truncated. kFailedPrecondition: files contradict each other (counts, sizes, class lists, images and
// label maps), shrink does not divide the sides, a file is no label map, or no pixel has a label. kResourceExhausted:
// over kMaxDatasetBytes, or one file over 256 MiB.
StatusOr<DataSplits> OpenDataset(const DataPlan& plan, const std::string& data_root, uint64_t seed,
                                 uint32_t num_classes = 0);

// kInvalidArgument when images of `dataset` are not what `student` takes (channels, height, width) or have more classes
// than its head.
Status CheckDatasetFits(const Dataset& dataset, const ModelSpec& student);

// A data set from pixels in memory: `pixels` holds labels.size() images [C, H, W], `label_maps` nothing or as many maps
// [H, W]. kInvalidArgument: sizes contradict; labels are not all in [0, classes) or all kNoLabel, which they have to be
// beside label maps; class ids are not in [0, classes) or kIgnoredPixel.
StatusOr<std::shared_ptr<const Dataset>> MakeMemoryDataset(uint32_t channels, uint32_t height, uint32_t width,
                                                           uint32_t classes, std::vector<uint8_t> pixels,
                                                           std::vector<int64_t> labels,
                                                           std::vector<uint8_t> label_maps = {});

// The real path of `path` below `root`, or an error as OpenDataset gives for it.
StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_DATASET_H_
