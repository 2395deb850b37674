// The images of a split: an index of what there is, where it lies and which label it has. Pixels are read and decoded
// when they are asked for (data_options.h says what stays in memory), so that a split may have any size.
//
// Formats (DataPlan.format); of "image_list" see image_list.h, of "cifar" cifar_reader.cc:
//   "idx"                  MNIST-style IDX files, gzipped or plain, in one folder: train-images-idx3-ubyte[.gz],
//                          train-labels-idx1-ubyte[.gz], t10k-images-idx3-ubyte[.gz], t10k-labels-idx1-ubyte[.gz]. Grey
//                          images, C = 1.
//   "image_folder"         FOLDER/{train,test}/CLASS/NAME.{jpg,jpeg,png,webp}, or FOLDER/{train,test}.tar[.gz] holding
//                          CLASS/NAME.jpg. Classes are numbered in alphabetical (byte) order of their names, images
//                          inside a class too. An image in no class folder is refused.
//   "segmentation_folder"  FOLDER/images/{train,test}/NAME.{jpg,jpeg,png,webp} with the label maps FOLDER/labels/{the
//                          same}/ NAME.png; "val" is taken where there is no images/test. A label map has the size of
//                          its image; it is a PNG, grey or with a palette, of 1, 2, 4 or 8 bits, and what it stores (of
//                          a palette: the index) is the class id. DataPlan.ignore_label stands for "no label". Images
//                          and label maps pair one to one: either without the other is refused. Images are numbered in
//                          alphabetical order. Each of the four folders may be a .tar or .tar.gz instead. With
//                          DataPlan.train_files and test_files the files lie as those patterns say, and
//                          DataPlan.unlabelled is a pattern too. DataPlan.label_map and reduce_zero_label renumber
//                          classes (label_ids.h).
// In the two folder formats pictures are turned upright as their EXIF says, grey files in a colour set are spread to
// three channels, alpha is dropped and 16-bit PNGs are rounded to 8 bits (label maps of such kinds are refused); and
// each side is divided by DataPlan.shrink when it is read (shrink.h), which must divide it. .jpe and .jfif are JPEG
// too. A folder and an archive of it give the same data set (image_source.h): links are followed, litter such as
// ._a.png, .DS_Store and __MACOSX is left out, and pictures deeper than they should be are refused.
// DataPlan.split makes test images of a share of the images in the place of training images (test_images.h).
//
// Training images without labels (DataPlan.unlabelled = NAME), beside those of the training split:
//   "idx"                  NAME-images-idx3-ubyte[.gz] in the same folder.
//   "image_folder"         FOLDER/NAME, or FOLDER/NAME.tar[.gz]: files in it and in its folders, however deep, in
//                          alphabetical order.
//   "segmentation_folder"  FOLDER/images/NAME, in the same way.
// Where the job's transforms (transforms.h) do not bring them to one size, all images of a split have the same height
// and width. IDX files and what gzipped archives hold lie in memory as long as the job runs, kMaxHeldBytes of each at
// most; plain archives and files are read where they lie.
#ifndef DISTILL_STUDENT_WORKER_DATA_DATASET_H_
#define DISTILL_STUDENT_WORKER_DATA_DATASET_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"
#include "student_worker/data/bad_images.h"
#include "student_worker/data/data_options.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/picture.h"
#include "student_worker/data/read_threads.h"

namespace distill {

inline constexpr uint64_t kMaxHeldBytes = 16ull << 30;
inline constexpr int64_t kNoLabel = -1;  // of an image

// Immutable, thread-safe.
class Dataset {
 public:
  virtual ~Dataset() = default;
  // Number of images, >= 1.
  virtual uint64_t size() const = 0;
  virtual uint32_t channels() const = 0;  // of each image
  // Of each image; 0: they have many sizes.
  virtual uint32_t height() const = 0;
  virtual uint32_t width() const = 0;
  // Labels and class ids are in [0, classes()), or kNoLabel and kIgnoredPixel.
  virtual uint32_t classes() const = 0;
  // kNoLabel: the image has none, or a label map instead. REQUIRES: index < size().
  virtual int64_t label(uint64_t index) const = 0;
  // Whether each image has a label map.
  virtual bool has_label_maps() const = 0;
  // The image's file, for messages. REQUIRES: index < size().
  virtual std::string Where(uint64_t index) const = 0;
  // Reads image `index`, with its label map if has_label_maps(). Errors name the file. kDataLoss: it cannot be decoded.
  // kUnavailable: the disk failed. kInvalidArgument, kFailedPrecondition: its label map is none. REQUIRES: index <
  // size().
  virtual Status Read(uint64_t index, Picture* out) const = 0;
  // Reads no more of image `index` than a transform will take: `out` holds the part that `choose` chose, at
  // `part->box`. What it holds does not depend on what is in memory. Otherwise as Read. REQUIRES: !has_label_maps().
  virtual Status ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const;
};

// Shared: the pipeline's loader thread and the trainer both read them. Labelled images have labels, or (segmentation
// folders) label maps.
struct DataSplits {
  std::shared_ptr<const Dataset> train;  // all labelled; null: none, which only a plan with unlabelled images may have
  std::shared_ptr<const Dataset> test;   // all labelled
  std::shared_ptr<const Dataset> unlabelled;  // null: none
  // Which could not be decoded, so far; shared with all who read. Never null after OpenDataset.
  std::shared_ptr<BadImages> bad_images = nullptr;
  // That all who read these splits share. Never null after OpenDataset.
  std::shared_ptr<ReadThreads> threads = nullptr;
  // What the job's owner should know of the files, though they can be used: one whole sentence each.
  std::vector<std::string> warnings = {};
  // SHA-256 (hex) of the data set's index: its splits, their class names, and of all their images, in order and before
  // a limit, the names below the split, labels and sizes in bytes (idx: the labels and the size in pixels). Nothing of
  // it depends on this machine or on packing. Ranks of one job must have the same.
  std::string digest = {};
};

// What a student takes. 0: anything.
struct WantedImages {
  uint32_t classes = 0;  // outputs of its head
  uint32_t channels = 0;
  uint32_t height = 0, width = 0;  // after shrinking and transforms; both or none
  bool test_of_any_size = false;   // the transforms of test images may lead to another size
};
// Of `plan`'s student, which is shown views of test images where the plan says so.
WantedImages WantedBy(const JobPlan& plan);

// Lists all splits and reads the headers of their files, which are compared with `want`. What options.cache says is
// then read and decoded: every picture, if all of them fit into options.cache_bytes (kAuto, kDecoded). Else damage
// behind the headers, and class ids beyond the student's classes, are found when Read() meets them.
//
// plan.path is taken below `data_root` (an absolute path is allowed when it lies inside); neither "..", nor a symbolic
// link may lead out of the root. plan.train_limit keeps the first n images of a shuffle keyed by `seed` (SubsetOrder,
// so every rank keeps the same ones, in that order); plan.test_limit the first n of a shuffle keyed by 0, so that jobs
// of different seeds are tested on the same images. A label, class id or class folder beyond want.classes is refused;
// all class ids of a chosen image count, before shrinking. So is a set whose numbers of images are not those of
// plan.train_size and plan.unlabelled_size, from which the lengths of the stages were computed (plan.train_limit taken
// into account), and label maps of one class where the student has more.
//
// One run tells all that is wrong with the files of all splits, up to DataReport::kNamedFiles of them by name.
// kNotFound: a folder or file is missing (names the path and the remedy). kInvalidArgument: the path or a link leaves
// the root, unknown format, more classes, another shape than wanted, ignore_label over 255, shrink 0 or (idx) over 1.
// kDataLoss: a file is damaged, truncated, or neither JPEG, PNG nor WebP. kFailedPrecondition: files contradict each
// other or the plan (counts, sizes, class lists, images and label maps), class folders are empty, pictures lie where
// none belongs, links lead nowhere, shrink does not divide the sides, a file is no label map, or no pixel has a label.
// kResourceExhausted: over kMaxHeldBytes, or one file over 256 MiB. kUnavailable: the disk failed. kCancelled: stop()
// was true, which is asked on the threads that load, before each file and every few megabytes: what it ends late is a
// disk that does not answer.
StatusOr<DataSplits> OpenDataset(const DataPlan& plan, const std::string& data_root, uint64_t seed,
                                 const WantedImages& want = {}, const DataOptions& options = {},
                                 const std::function<bool()>& stop = nullptr);

// A data set from pixels in memory: `pixels` holds labels.size() images [C, H, W], `label_maps` nothing or as many maps
// [H, W]. kInvalidArgument: sizes contradict; labels are not all in [0, classes) or all kNoLabel, which they have to be
// beside label maps; class ids are not in [0, classes) or kIgnoredPixel.
StatusOr<std::shared_ptr<const Dataset>> MakeMemoryDataset(uint32_t channels, uint32_t height, uint32_t width,
                                                           uint32_t classes, std::vector<uint8_t> pixels,
                                                           std::vector<int64_t> labels,
                                                           std::vector<uint8_t> label_maps = {});

// The real path of `path` below `root`. kNotFound: it does not exist. kInvalidArgument: it leads out of the root, by a
// ".." or a symbolic link.
StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_DATASET_H_
