// A job file as read, before it is checked against networks and fleet: what presets write and the plan builder turns
// into a JobPlan. Plain data; every part remembers where it came from, for messages.
#ifndef DISTILL_COORDINATOR_JOBFILE_JOB_DRAFT_H_
#define DISTILL_COORDINATOR_JOBFILE_JOB_DRAFT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "coordinator/jobfile/yaml_tree.h"

namespace distill {

// Either of the two, never both; none: not given.
struct LengthDraft {
  std::optional<uint64_t> steps;
  std::optional<double> epochs;  // passes over the training set
  YamlMark mark;
  bool given() const { return steps.has_value() || epochs.has_value(); }
};

// One of optimizer.lr_mult: modules as written, which the builder expands against the student.
struct LrMultDraft {
  std::vector<std::string> globs;
  double factor = 1;
  std::string path;  // "stages[1].optimizer.lr_mult[0]"
  YamlMark mark;
};

// `lr_mult` of the base is empty until the builder fills it in.
struct OptimizerDraft : OptimizerPlan {
  std::vector<LrMultDraft> multipliers;
};

struct LossDraft {
  std::string name;  // "": made from type and tap
  std::string type;
  double weight = 1;
  std::string student_tap;
  std::string teacher_tap;
  std::string adapter = "auto";            // auto, or one of AdapterKinds()
  std::string tap_position = "post_relu";  // pre_relu: the sums before the last ReLU of both taps
  WeightSchedulePlan weight_schedule;
  OwnParametersPlan own;
  Knobs knobs;  // as given; defaults are filled in by the builder
  YamlMark mark;
  YamlMark name_mark;
  YamlMark student_mark;
  YamlMark teacher_mark;
  YamlMark adapter_mark;
  bool broken = false;  // a problem was reported already; checks that build on its fields are skipped
};

struct StageDraft {
  std::string name;
  std::vector<std::string> trainable = {"**"};
  std::vector<YamlMark> trainable_marks;  // parallel to `trainable`, or empty: `mark`
  LengthDraft length;
  OptimizerDraft optimizer;
  SchedulePlan schedule;
  std::vector<LossDraft> losses;
  std::string frozen_bn = "eval";
  std::string select = "last";
  uint32_t patience = 0;
  bool unlabelled_ok = false;
  std::string select_by = "objective";
  YamlMark select_mark;
  YamlMark select_by_mark;
  YamlMark unlabelled_mark;
  std::string teacher_input;  // blockwise: the teacher's map at this tap ...
  std::string student_input;  // ... takes the place of the student's at this one
  YamlMark mark;
  YamlMark name_mark;
  YamlMark input_mark;
};

struct KdOptions {
  double temperature = 4;
  double weight = 0.9;  // of the kd term; cross-entropy gets 1 - weight
};
struct CwdOptions {
  double temperature = 1;
  double weight = 2;     // per pair of stage ends
  double kd_weight = 0;  // of an additional kd term; cross-entropy gets 1 - kd_weight
  double kd_temperature = 4;
};
// A loss on the last pair of stage ends, beside cross-entropy.
struct LastStageOptions {
  double weight;
  double kd_weight = 0;  // of an additional kd term; cross-entropy gets 1 - kd_weight
  double kd_temperature = 4;
};
// One of sskd.stages: a pair of taps that the user named, and what its phase does differently.
struct SskdStageDraft {
  std::string student;
  std::string teacher;
  std::string name;  // "": mimic-1, mimic-2, ...
  double share = 1;  // of the budget
  OptimizerDraft optimizer;
  SchedulePlan schedule;
  YamlMark mark;
  YamlMark name_mark;
  YamlMark student_mark;
  YamlMark teacher_mark;
};
struct SskdHeadDraft {
  double share = 1;
  OptimizerDraft optimizer;
  SchedulePlan schedule;
  double label_smoothing = 0;
  bool from_teacher = false;  // starts with the weights of the teacher's head
  YamlMark init_mark;
};
struct SskdOptions {
  std::string policy = "freeze_previous";
  std::string adapter = "auto";
  std::string feature_loss = "l2";
  std::string reduction = "mean";
  std::string spatial_mismatch = "error";
  std::string tap_position = "post_relu";
  std::string frozen_bn = "eval";
  std::string select = "last";
  uint32_t patience = 0;
  std::string select_by = "objective";
  YamlMark select_by_mark;
  bool restart_lr = true;
  bool unlabelled_ok = false;
  YamlMark unlabelled_mark;
  std::vector<SskdStageDraft> stages;  // empty: pairs are found by size
  bool stages_given = false;           // `stages` may be empty all the same, when they could not be read
  YamlMark stages_mark;
  SskdHeadDraft head;
  std::vector<double> phase_shares;  // of the budget, one per phase and the head; empty: equal
  YamlMark phase_shares_mark;
  LengthDraft finetune;  // not given: off
  double finetune_lr = 0.01;
};

struct JobDraft {
  // Everything but `teachers` and `stages`.
  JobPlan plan;
  std::string teacher;  // name of a served model; "" for none
  YamlMark teacher_mark;
  YamlMark student_mark;
  std::string archive;  // student.archive; "": a network of the zoo
  YamlMark archive_mark;
  YamlMark batch_mark;                     // of batch_size
  YamlMark prefetch_mark;                  // of prefetch
  YamlMark evaluate_mark;                  // of evaluate.teacher
  bool evaluate_teacher_given = false;     // evaluate.teacher is in the file
  YamlMark scales_mark, window_mark;       // of evaluate.scales and evaluate.window
  std::vector<std::string> weights_globs;  // of student.weights_modules, as written
  YamlMark weights_mark;
  YamlMark format_mark;  // of data.format
  YamlMark train_transforms_mark, test_transforms_mark;
  YamlMark unlabelled_mark;  // of data.unlabelled
  YamlMark label_map_mark;   // of data.label_map
  bool evaluate_teacher = true;
  OptimizerDraft optimizer;
  SchedulePlan schedule;
  LengthDraft budget;
  std::string preset;  // "": stages are written out
  YamlMark preset_mark;
  KdOptions kd;
  CwdOptions cwd;
  LastStageOptions channel_transform{.weight = 2};
  LastStageOptions tat{.weight = 0.1};
  SskdOptions sskd;
  std::vector<StageDraft> stages;  // as written; filled in by the preset otherwise
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_JOB_DRAFT_H_
