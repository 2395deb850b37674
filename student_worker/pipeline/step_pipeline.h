// The inputs of training steps, in step order, prepared ahead: pixels by a loader thread and those that read pictures
// (ReadThreads), features by the teacher pool.
//
// One thread ("loader") samples, has the pictures read and transformed, and asks the pool for features; a ring keyed by
// step waits for both. At most `depth` steps are under way; the bytes of features are bounded by the pool's window.
// What step s contains depends on the options and s alone.
#ifndef DISTILL_STUDENT_WORKER_PIPELINE_STEP_PIPELINE_H_
#define DISTILL_STUDENT_WORKER_PIPELINE_STEP_PIPELINE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "student_worker/data/sample_reader.h"
#include "student_worker/data/sampler.h"
#include "student_worker/feature/teacher_pool.h"

namespace distill {

// One step of this rank; n is the rank's share of the batch.
struct StepInput {
  uint64_t step = 0;
  uint64_t epoch = 0;
  std::vector<uint32_t> sample_ids;  // [n], indices into the data set
  ImageBatch images;                 // [n, C, H, W], transformed, as the teacher saw them
  std::vector<int64_t> labels;       // [n]; kNoLabel: none, or a label map instead
  // [n, H, W], class ids or kIgnoredPixel, transformed like `images`; empty: the data set has none.
  std::vector<uint8_t> label_maps;
  std::vector<VisibleRect> visible;  // [n], what of each picture is no padding
  FeatureBatch features;             // no taps when the pipeline has no pool
  double data_seconds = 0;           // how long Next(), all calls for this step together, waited for pixels ...
  double feature_seconds = 0;        // ... and after that for features
};

// Next() by one thread; Stop() from any thread.
class StepPipeline {
 public:
  struct Options {
    std::shared_ptr<const SampleReader> samples;  // shared with the trainer; immutable
    // dataset_size is filled in from `samples`.
    SamplerOptions sampler;
    // Not owned, outlives the pipeline; null: no features.
    TeacherPool* pool = nullptr;
    // Steps [first_step, end_step).
    uint64_t first_step = 0;
    uint64_t end_step = 0;
    // Steps prepared ahead, >= 1. Raising it costs a batch of pixels each and lets more requests wait at the teachers.
    uint32_t depth = 8;
  };
  // kInvalidArgument: no data set, depth 0, or as Sampler::Create.
  static StatusOr<std::unique_ptr<StepPipeline>> Create(Options options);
  ~StepPipeline();  // Stop()
  StepPipeline(const StepPipeline&) = delete;
  StepPipeline& operator=(const StepPipeline&) = delete;

  // The next step's input; blocks until it is complete, at most `timeout`. Release the features of earlier steps first:
  // the pool's window may have room for one batch only. kDeadlineExceeded: not complete yet, call again. kOutOfRange:
  // after end_step. kCancelled: stopped. Otherwise the pool's error for this step; the pipeline is of no use afterwards
  // and repeats it.
  StatusOr<StepInput> Next(std::chrono::milliseconds timeout = std::chrono::hours(24 * 365));
  // Next() returns kCancelled from now on; unanswered requests are cancelled. Idempotent.
  void Stop();

 private:
  struct State;
  StepPipeline(Options options, Sampler sampler);
  void Load();

  const Options options_;
  Sampler sampler_;               // loader thread only
  std::shared_ptr<State> state_;  // shared with the pool's callbacks, which may come after the pipeline is gone
  // Caller of Next() only. The seconds are those waited for the next step so far.
  uint64_t next_step_;
  double data_seconds_ = 0;
  double feature_seconds_ = 0;
  std::thread loader_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_PIPELINE_STEP_PIPELINE_H_
