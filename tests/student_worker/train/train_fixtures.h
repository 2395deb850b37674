// What the training tests share: a small plan, data, groups of ranks in threads, and steps made without pipeline or
// network.
#ifndef DISTILL_TESTS_STUDENT_WORKER_TRAIN_TRAIN_FIXTURES_H_
#define DISTILL_TESTS_STUDENT_WORKER_TRAIN_TRAIN_FIXTURES_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/collective/collective_group.h"
#include "common/rendezvous/kv_client.h"
#include "common/wire/largest_value.h"
#include "common/zoo/batch_norm.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/train/lockstep.h"
#include "student_worker/train/stage_runner.h"

namespace distill {

template <typename T>
T Take(StatusOr<T> value) {
  if (!value.ok()) throw std::runtime_error(value.status().ToString());
  return std::move(*value);
}

// ResNet-8 of width 4 on 12x12 grey images, 4 classes.
inline ModelSpec SmallStudent() {
  ModelSpec spec;
  spec.arch = "cifar_resnet8";
  spec.width = 4;
  spec.num_classes = 4;
  spec.in_channels = 1;
  spec.image_height = 12;
  spec.image_width = 12;
  spec.mean = {0.4f};
  spec.std = {0.3f};
  return spec;
}

// The same network of another width and other weights, in eval mode.
inline std::shared_ptr<ZooNet> SmallTeacher(uint32_t width) {
  ModelSpec spec = SmallStudent();
  spec.width = width;
  auto net = Take(ZooNet::Create(spec));
  net->InitWeights(99);
  net->eval();
  return net;
}

inline LossPlan CrossEntropy(double weight = 1) {
  LossPlan loss;
  loss.name = "cross_entropy";
  loss.type = "cross_entropy";
  loss.weight = weight;
  return loss;
}

inline LossPlan FeatureLoss(const std::string& type, const std::string& tap, uint32_t student_channels,
                            uint32_t teacher_channels) {
  LossPlan loss;
  loss.name = type + "-" + tap;
  loss.type = type;
  loss.student_tap = tap;
  loss.teacher_tap = tap;
  loss.needs_teacher = true;
  loss.student_channels = student_channels;
  loss.teacher_channels = teacher_channels;
  if (student_channels != teacher_channels) loss.adapter = "conv1x1";
  return loss;
}

inline StagePlan Stage(const std::string& name, std::vector<std::string> trainable, std::vector<LossPlan> losses,
                       uint64_t steps) {
  StagePlan stage;
  stage.name = name;
  stage.trainable = std::move(trainable);
  stage.losses = std::move(losses);
  stage.steps = steps;
  for (const LossPlan& loss : stage.losses) {
    stage.uses_labels |= loss.type == "cross_entropy";
    stage.needs_teacher |= loss.needs_teacher;
  }
  return stage;
}

inline std::vector<std::string> WholeNet() { return {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}; }

inline JobPlan SmallPlan(std::vector<StagePlan> stages) {
  JobPlan plan;
  plan.name = "small";
  plan.seed = 5;
  plan.students = 1;
  plan.threads = 1;
  plan.batch_size = 16;
  plan.student = SmallStudent();
  plan.stages = std::move(stages);
  plan.device = "cpu";
  return plan;
}

// Parameters and buffers by name, copied.
inline std::map<std::string, torch::Tensor> StateOf(const ZooNet& net) {
  std::map<std::string, torch::Tensor> state;
  for (const auto& item : net.named_parameters()) state[item.key()] = item.value().detach().clone();
  for (const auto& item : net.named_buffers()) state[item.key()] = item.value().detach().clone();
  return state;
}

inline std::vector<std::string> Changed(const std::map<std::string, torch::Tensor>& before,
                                        const std::map<std::string, torch::Tensor>& after) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : before) {
    if (!torch::equal(tensor, after.at(name))) names.push_back(name);
  }
  return names;
}

// Random images whose class is the brightest quadrant; step s of rank r depends on (s, r) alone. With a teacher, its
// taps as a server would send them.
class SyntheticSource : public StepSource {
 public:
  SyntheticSource(uint64_t first_step, uint32_t images, uint32_t rank = 0, uint32_t ranks = 1)
      : step_(first_step), images_(images), rank_(rank), ranks_(ranks) {}

  void SetTeacher(std::shared_ptr<ZooNet> teacher, std::vector<TapRequest> taps) {
    teacher_ = std::move(teacher);
    taps_ = std::move(taps);
  }

  // The global batch of a step: every rank cuts its part from it.
  static void Batch(uint64_t step, uint32_t images, std::vector<uint8_t>* pixels, std::vector<int64_t>* labels) {
    uint64_t state = step * 7919 + 17;
    const auto random = [&state] {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      return static_cast<uint32_t>(state >> 33);
    };
    for (uint32_t i = 0; i < images; ++i) {
      const uint32_t label = random() % 4;
      labels->push_back(label);
      for (uint32_t y = 0; y < 12; ++y) {
        for (uint32_t x = 0; x < 12; ++x) {
          const bool bright = (y / 6) * 2 + x / 6 == label;
          pixels->push_back(static_cast<uint8_t>((bright ? 120 : 20) + random() % 80));
        }
      }
    }
  }

  StatusOr<StepInput> Next(std::chrono::milliseconds) override {
    if (late_ > 0) {
      --late_;
      return absl::DeadlineExceededError("late");
    }
    if (!error_.ok()) return error_;
    StepInput input;
    input.step = step_;
    std::vector<uint8_t> all;
    std::vector<int64_t> labels;
    Batch(step_++, images_, &all, &labels);
    const uint32_t n = images_ / ranks_;
    input.labels.assign(labels.begin() + rank_ * n, labels.begin() + (rank_ + 1) * n);
    input.images = {n, 1, 12, 12,
                    Buffer::FromVector({all.begin() + rank_ * n * 144, all.begin() + (rank_ + 1) * n * 144})};
    if (teacher_ != nullptr) {
      torch::NoGradGuard no_grad;
      std::vector<std::string> names;
      for (const TapRequest& tap : taps_) names.push_back(tap.tap);
      torch::Tensor images =
          torch::from_blob(const_cast<uint8_t*>(input.images.pixels.data), {n, 1, 12, 12}, torch::kUInt8);
      const auto values = Take(teacher_->Forward(NormalizePixels(images, SmallStudent(), true), names));
      for (const torch::Tensor& value : values) {
        // Networks run channels last, and their maps travel so.
        const bool last = value.dim() == 4 && value.is_contiguous(torch::MemoryFormat::ChannelsLast);
        const torch::Tensor plain = last ? value : value.contiguous();
        WireTensor wire;
        if (last) wire.layout = TensorLayout::kChannelsLast;
        for (int64_t d : plain.sizes()) wire.shape.push_back(static_cast<uint32_t>(d));
        const auto* bytes = static_cast<const uint8_t*>(plain.const_data_ptr());
        wire.bytes = Buffer::FromVector({bytes, bytes + plain.nbytes()});
        input.features.taps.push_back(std::move(wire));
      }
      if (poison_) {
        const Buffer& bytes = input.features.taps[poison_tap_].bytes;
        const_cast<float*>(reinterpret_cast<const float*>(bytes.data))[0] = poison_with_;
      }
      for (WireTensor& tensor : input.features.taps) {
        LargestValue largest(tensor.encoding.dtype);
        largest.Add(tensor.bytes.data, tensor.bytes.size);
        tensor.largest = largest.value();
      }
    }
    return input;
  }

  int late_ = 0;         // calls of Next that find nothing yet
  Status error_;         // given by Next when set
  bool poison_ = false;  // poison_with_ is in the tap poison_tap_
  float poison_with_ = NAN;
  size_t poison_tap_ = 0;

 private:
  uint64_t step_;
  const uint32_t images_, rank_, ranks_;
  std::shared_ptr<ZooNet> teacher_;  // shared by the sources of several ranks
  std::vector<TapRequest> taps_;
};

// One rank: a group, its lock-step and a net of the plan's seed.
struct Rank {
  Rank(const JobPlan& job_plan, uint32_t rank, uint32_t ranks, std::shared_ptr<KvClient> store,
       std::chrono::milliseconds timeout = std::chrono::seconds(30))
      : plan(job_plan), control({}) {
    at::set_num_threads(1);
    CollectiveGroup::Options options;
    options.rank = rank;
    options.world_size = ranks;
    options.timeout = timeout;
    group = Take(CollectiveGroup::Create(options, std::move(store)));
    if (const Status connected = group->Connect(); !connected.ok()) throw std::runtime_error(connected.ToString());
    lockstep = std::make_unique<Lockstep>(group.get(), &control, torch::kCPU, std::chrono::milliseconds(10));
    net = Take(ZooNet::Create(plan.student));
    net->InitWeights(plan.seed);
  }
  explicit Rank(const JobPlan& job_plan) : Rank(job_plan, 0, 1, nullptr) {}

  std::unique_ptr<StageRunner> Runner(uint32_t stage = 0) {
    auto runner = Take(StageRunner::Create(
        {.plan = &plan, .stage = stage, .net = net.get(), .lockstep = lockstep.get(), .device = torch::kCPU}));
    if (const Status joined = runner->JoinRanks(); !joined.ok()) throw std::runtime_error(joined.ToString());
    return runner;
  }

  JobPlan plan;
  JobControl control;
  std::unique_ptr<CollectiveGroup> group;
  std::unique_ptr<Lockstep> lockstep;
  std::shared_ptr<ZooNet> net;
};

// A group's ranks, as batch norms see them.
class RanksOfGroup : public NormRanks {
 public:
  explicit RanksOfGroup(CollectiveGroup* group) : group_(group) {}
  uint32_t rank() const override { return group_->rank(); }
  uint32_t size() const override { return group_->world_size(); }
  void Sum(const torch::Tensor& tensor) override {
    std::vector<torch::Tensor> tensors = {tensor};
    if (!group_->AllReduceSum(tensors).ok()) throw std::runtime_error("all-reduce");
  }

 private:
  CollectiveGroup* const group_;
};

// Runs `body` for each rank in a thread of its own, with a common rendezvous store. Exceptions become test failures.
inline void OnRanks(uint32_t ranks, const std::function<void(uint32_t, std::shared_ptr<KvClient>)>& body) {
  const std::shared_ptr<KvClient> store = MakeLocalKvClient();
  std::vector<std::thread> threads;
  std::vector<std::string> errors(ranks);
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank, store);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t rank = 0; rank < ranks; ++rank) EXPECT_EQ(errors[rank], "") << "rank " << rank;
}

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_TRAIN_TRAIN_FIXTURES_H_
