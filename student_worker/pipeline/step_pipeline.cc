#include "student_worker/pipeline/step_pipeline.h"

#include <pthread.h>

#include <chrono>
#include <exception>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

struct StepPipeline::State {
  struct Slot {
    StepInput input;              // without features
    bool features_ready = false;  // features or error have come
    Status error;
    FeatureBatch features;
    uint64_t ticket = 0;  // of the pool's request; 0: none
  };
  absl::Mutex mu;
  bool stopped ABSL_GUARDED_BY(mu) = false;
  Status loader_error ABSL_GUARDED_BY(mu);            // the loader has ended early
  uint64_t next ABSL_GUARDED_BY(mu) = 0;              // first step not yet handed out
  std::map<uint64_t, Slot> ring ABSL_GUARDED_BY(mu);  // by step; pixels and labels are complete
};

StatusOr<std::unique_ptr<StepPipeline>> StepPipeline::Create(Options options) {
  if (options.samples == nullptr) return absl::InvalidArgumentError("a step pipeline needs samples");
  if (options.depth == 0) return absl::InvalidArgumentError("a step pipeline needs a depth of at least 1 step");
  options.sampler.dataset_size = options.samples->size();
  DISTILL_ASSIGN_OR_RETURN(Sampler sampler, Sampler::Create(options.sampler));
  std::unique_ptr<StepPipeline> pipeline(new StepPipeline(std::move(options), std::move(sampler)));
  pipeline->loader_ = std::thread([raw = pipeline.get()] {
    pthread_setname_np(pthread_self(), "loader");
    try {
      raw->Load();
    } catch (const std::exception& error) {  // out of memory
      absl::MutexLock lock(&raw->state_->mu);
      raw->state_->loader_error = absl::ResourceExhaustedError(StrCat("loading images: ", error.what()));
    }
  });
  return pipeline;
}

StepPipeline::StepPipeline(Options options, Sampler sampler)
    : options_(std::move(options)),
      sampler_(std::move(sampler)),
      state_(std::make_shared<State>()),
      next_step_(options_.first_step) {
  absl::MutexLock lock(&state_->mu);
  state_->next = options_.first_step;
}

StepPipeline::~StepPipeline() {
  Stop();
  loader_.join();
}

void StepPipeline::Stop() {
  std::map<uint64_t, State::Slot> ring;  // destroyed after the lock: gives its features' bytes back to the pool
  {
    absl::MutexLock lock(&state_->mu);
    state_->stopped = true;
    ring.swap(state_->ring);
  }
  for (const auto& [step, slot] : ring) {
    if (slot.ticket != 0 && !slot.features_ready) options_.pool->Cancel(slot.ticket);
  }
}

void StepPipeline::Load() {
  const SampleReader& reader = *options_.samples;
  for (uint64_t step = options_.first_step; step < options_.end_step; ++step) {
    {
      absl::MutexLock lock(&state_->mu);
      auto room = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu) {
        return state_->stopped || step - state_->next < options_.depth;
      };
      state_->mu.Await(absl::Condition(&room));
      if (state_->stopped) return;
    }
    State::Slot slot;
    StepInput& input = slot.input;
    input.step = step;
    input.epoch = sampler_.Epoch(step);
    input.sample_ids = sampler_.SampleIds(step);
    StatusOr<Samples> samples = reader.Read(input.sample_ids, input.epoch);
    if (!samples.ok()) {
      absl::MutexLock lock(&state_->mu);
      state_->loader_error = samples.status();
      return;
    }
    input.labels = std::move(samples->labels);
    input.label_maps = std::move(samples->label_maps);
    input.visible = std::move(samples->visible);
    input.images = ImageBatch{static_cast<uint32_t>(input.sample_ids.size()), reader.channels(), reader.height(),
                              reader.width(), Buffer::FromVector(std::move(samples->pixels))};
    const ImageBatch images = input.images;
    slot.features_ready = options_.pool == nullptr;
    {
      absl::MutexLock lock(&state_->mu);
      if (state_->stopped) return;
      state_->ring.emplace(step, std::move(slot));
    }
    if (options_.pool == nullptr) continue;
    const uint64_t ticket = options_.pool->Fetch(step, images, [state = state_, step](StatusOr<FeatureBatch> features) {
      absl::MutexLock lock(&state->mu);
      const auto it = state->ring.find(step);
      if (state->stopped || it == state->ring.end())
        return;  // `features` is released after the lock, with the caller's argument
      it->second.features_ready = true;
      if (features.ok()) {
        it->second.features = *std::move(features);
      } else {
        it->second.error = features.status();
      }
    });
    bool stopped = false;
    {
      absl::MutexLock lock(&state_->mu);
      stopped = state_->stopped;
      // Already handed out when the answer was quick and the consumer waiting.
      if (const auto it = state_->ring.find(step); it != state_->ring.end()) it->second.ticket = ticket;
    }
    if (stopped) {
      options_.pool->Cancel(ticket);
      return;
    }
  }
}

StatusOr<StepInput> StepPipeline::Next(std::chrono::milliseconds timeout) {
  if (next_step_ >= options_.end_step) return absl::OutOfRangeError("all steps of the stage were delivered");
  const auto start = std::chrono::steady_clock::now();
  absl::MutexLock lock(&state_->mu);
  auto loaded = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu) {
    return state_->stopped || !state_->loader_error.ok() || state_->ring.contains(next_step_);
  };
  const absl::Duration deadline = SteadyNow() + absl::FromChrono(timeout);
  const bool in_time = AwaitFor(&state_->mu, absl::Condition(&loaded), deadline - SteadyNow());
  const double data_seconds = SecondsSince(start);
  data_seconds_ += data_seconds;
  if (!in_time) {
    return absl::DeadlineExceededError(StrCat("the images of step ", next_step_, " are not there yet"));
  }
  if (state_->stopped) return absl::CancelledError("the step pipeline was stopped");
  if (!state_->ring.contains(next_step_)) return state_->loader_error;
  State::Slot* const slot = &state_->ring.at(next_step_);
  auto complete = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu) { return state_->stopped || slot->features_ready; };
  const bool complete_in_time = AwaitFor(&state_->mu, absl::Condition(&complete), deadline - SteadyNow());
  feature_seconds_ += SecondsSince(start) - data_seconds;
  if (!complete_in_time) {
    return absl::DeadlineExceededError(StrCat("the features of step ", next_step_, " are not there yet"));
  }
  if (state_->stopped) return absl::CancelledError("the step pipeline was stopped");
  if (!slot->error.ok()) return slot->error;
  StepInput input = std::move(slot->input);
  input.features = std::move(slot->features);
  input.data_seconds = std::exchange(data_seconds_, 0);
  input.feature_seconds = std::exchange(feature_seconds_, 0);
  state_->ring.erase(next_step_);
  state_->next = ++next_step_;
  return input;
}

}  // namespace distill
