// Pictures of a data set as the student and its teachers see them: read, transformed, all of one size, many at a time.
#ifndef DISTILL_STUDENT_WORKER_DATA_SAMPLE_READER_H_
#define DISTILL_STUDENT_WORKER_DATA_SAMPLE_READER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"
#include "student_worker/data/bad_images.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/picture.h"
#include "student_worker/data/read_threads.h"
#include "student_worker/data/transforms.h"

namespace distill {

struct Samples {
  std::vector<uint8_t> pixels;       // [n, C, H, W]
  std::vector<int64_t> labels;       // [n]; kNoLabel: none, or a label map instead
  std::vector<uint8_t> label_maps;   // [n, H, W], class ids or kIgnoredPixel; empty: the data set has none
  std::vector<VisibleRect> visible;  // [n], what of each picture is no padding
};

// What is read in place of a picture that cannot be decoded, where the job skips such.
enum class BadImageRule {
  kNext,     // the one after it in the data set, with its label: for training
  kNoLabel,  // a black picture without a label, which counts nowhere: for measuring
};

// Immutable, thread-safe.
class SampleReader {
 public:
  struct Options {
    std::shared_ptr<const Dataset> dataset;  // shared with other readers of its pictures
    Transforms transforms;
    BadImageRule rule = BadImageRule::kNext;
    std::shared_ptr<BadImages> bad_images;  // shared by all readers of a job; null: a bad picture is an error
    std::shared_ptr<ReadThreads> threads;   // likewise; null: the caller's alone
  };
  // kInvalidArgument: no data set, or one of many sizes that the transforms leave.
  static StatusOr<std::shared_ptr<const SampleReader>> Create(Options options);

  const Dataset& dataset() const { return *options_.dataset; }
  uint64_t size() const { return dataset().size(); }
  bool has_label_maps() const { return dataset().has_label_maps(); }
  uint32_t channels() const { return dataset().channels(); }
  uint32_t height() const { return height_; }  // after the transforms
  uint32_t width() const { return width_; }
  uint64_t image_bytes() const { return channels() * label_map_bytes(); }
  uint64_t label_map_bytes() const { return uint64_t{height_} * width_; }

  // The pictures `ids` as they look in `epoch`: a pure function of the options, ids and epoch. Errors as Dataset::Read
  // and BadImages::Note. REQUIRES: ids < size().
  StatusOr<Samples> Read(std::span<const uint32_t> ids, uint64_t epoch) const;
  // The pictures [begin, begin + n).
  StatusOr<Samples> ReadRange(uint64_t begin, uint64_t n) const;

 private:
  explicit SampleReader(Options options) : options_(std::move(options)) {}
  Status ReadOne(uint64_t id, uint64_t epoch, size_t place, Samples* out) const;

  const Options options_;
  uint32_t height_ = 0, width_ = 0;
};

// How the stages of one job look at its data sets.
class SampleReaders {
 public:
  SampleReaders() = default;
  // As SampleReader::Create, and as Transforms::Create.
  static StatusOr<SampleReaders> Create(const JobPlan& plan, const DataSplits& splits);
  StatusOr<std::shared_ptr<const SampleReader>> ForTraining(std::shared_ptr<const Dataset> dataset) const;
  StatusOr<std::shared_ptr<const SampleReader>> ForMeasuring(std::shared_ptr<const Dataset> dataset) const;
  // Of all these readers; null before Create.
  BadImages* bad_images() const { return training_.bad_images.get(); }

 private:
  SampleReader::Options training_, measuring_;  // without a data set
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_SAMPLE_READER_H_
