// A job's expanded plan as plain C++: the mirror of proto/distill/v1/plan.proto for code that must not see protobuf.
//
// Field meanings, units and defaults stand in the .proto; names agree one to one. All types are values: copyable,
// comparable, thread-compatible. Conversion: common/plan/plan_codec.h.
#ifndef DISTILL_COMMON_PLAN_PLAN_H_
#define DISTILL_COMMON_PLAN_PLAN_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace distill {

// number | flag | text
using KnobValue = std::variant<double, bool, std::string>;
using Knobs = std::map<std::string, KnobValue>;

struct ModelSpec {
  std::string arch;
  uint32_t width = 0;
  uint32_t num_classes = 0;
  uint32_t in_channels = 0;
  uint32_t image_height = 0;
  uint32_t image_width = 0;
  std::string weights;
  std::vector<float> mean;
  std::vector<float> std;
  std::vector<std::string> weights_modules;
  bool weights_of_teacher = false;
  bool operator==(const ModelSpec&) const = default;
};

struct TeacherRef {
  std::string model;
  std::string digest;
  ModelSpec spec;
  uint64_t parameters = 0;
  uint64_t bytes = 0;
  bool operator==(const TeacherRef&) const = default;
};

struct WeightSchedulePlan {
  std::string type = "constant";
  double warmup = 0;
  double start = 0;
  double stop = 1;
  bool operator==(const WeightSchedulePlan&) const = default;
};

struct OwnParametersPlan {
  double lr_mult = 1;
  bool constant_lr = false;
  double weight_decay = -1;
  bool operator==(const OwnParametersPlan&) const = default;
};

struct LossPlan {
  std::string name;
  std::string type;
  double weight = 1;
  std::string student_tap;
  std::string teacher_tap;
  bool needs_teacher = false;
  std::string adapter = "none";
  uint32_t student_channels = 0;
  uint32_t teacher_channels = 0;
  Knobs knobs;
  WeightSchedulePlan weight_schedule;
  OwnParametersPlan own;
  uint32_t student_height = 0;
  uint32_t student_width = 0;
  uint32_t teacher_height = 0;
  uint32_t teacher_width = 0;
  bool operator==(const LossPlan&) const = default;
};

struct LrMultPlan {
  std::vector<std::string> modules;
  double factor = 1;
  bool operator==(const LrMultPlan&) const = default;
};

struct OptimizerPlan {
  std::string type = "sgd";
  double lr = 0.1;
  double momentum = 0.9;
  double weight_decay = 5e-4;
  bool nesterov = false;
  double clip_norm = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  bool decay_norms_and_biases = true;
  std::vector<LrMultPlan> lr_mult;
  double ema_decay = 0;
  bool operator==(const OptimizerPlan&) const = default;
};

struct SchedulePlan {
  std::string type = "cosine";
  double warmup = 0.05;
  std::vector<double> milestones;
  double gamma = 0.1;
  double begin = 0;
  double end = 1;
  double power = 0.9;
  double min_factor = 0;
  double pct_start = 0.3;
  double div_factor = 25;
  double final_div_factor = 1e4;
  bool operator==(const SchedulePlan&) const = default;
};

struct StagePlan {
  std::string name;
  std::vector<std::string> trainable;
  std::string student_until;
  std::vector<LossPlan> losses;
  OptimizerPlan optimizer;
  SchedulePlan schedule;
  uint64_t steps = 0;
  bool uses_labels = false;
  bool needs_teacher = false;
  std::vector<std::string> trainable_globs;
  std::string teacher_input;
  std::string student_input;
  std::string frozen_bn = "eval";
  std::string select = "last";
  uint32_t patience = 0;
  bool unlabelled_ok = false;
  std::string select_by = "objective";
  bool operator==(const StagePlan&) const = default;
};

// One transform of pictures: common/plan/transform_schema.h.
struct TransformPlan {
  std::string type;
  std::map<std::string, std::vector<double>> values;  // by knob
  bool operator==(const TransformPlan&) const = default;
};

struct SplitPlan {
  double test = 0;
  std::string by = "class";
  uint64_t seed = 0;
  bool operator==(const SplitPlan&) const = default;
};

// Patterns of the files of a split: common/plan/path_pattern.h.
// Where the files of a split lie. `images` and `labels` of a segmentation folder are patterns (path_pattern.h).
struct SplitFiles {
  std::string images, labels;
  std::string list;
  bool operator==(const SplitFiles&) const = default;
};
struct DataPlan {
  std::string format = "idx";
  std::string path;
  uint64_t train_limit = 0;
  uint64_t test_limit = 0;
  std::vector<TransformPlan> train_transforms;
  std::vector<TransformPlan> test_transforms;
  std::string on_bad_image = "fail";
  double bad_image_limit = 0.01;
  uint64_t holdout = 0;
  std::string unlabelled;
  uint32_t ignore_label = 255;
  uint32_t shrink = 1;
  std::optional<uint64_t> train_size;
  std::optional<uint64_t> unlabelled_size;
  std::optional<SplitPlan> split;
  std::optional<SplitFiles> train_files, test_files;
  std::map<uint32_t, uint32_t> label_map;
  bool reduce_zero_label = false;
  bool operator==(const DataPlan&) const = default;
};

struct JobPlan {
  std::string name;
  uint64_t seed = 0;
  uint32_t students = 1;
  uint32_t threads = 1;
  uint32_t batch_size = 128;
  ModelSpec student;
  std::vector<TeacherRef> teachers;
  DataPlan data;
  std::vector<StagePlan> stages;
  uint64_t checkpoint_every = 0;
  uint64_t log_every = 20;
  bool deterministic = true;
  uint64_t prefetch_bytes = 64ull << 20;
  std::string wire_dtype = "f32";
  std::string preset;
  std::string device = "auto";
  bool evaluate_teacher = true;
  uint64_t evaluate_every = 0;
  bool evaluate_flip = false;
  uint32_t accumulate = 1;
  std::string autocast = "none";
  bool sync_batch_norm = false;
  std::vector<double> evaluate_scales;
  std::vector<uint32_t> evaluate_window;
  std::vector<uint32_t> evaluate_stride;
  bool operator==(const JobPlan&) const = default;
};

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_PLAN_H_
