#include "coordinator/jobfile/job_keys.h"

#include <cstdlib>

namespace distill {
namespace {

constexpr std::string_view kTop[] = {
    "name",      "seed",          "students",  "threads",        "device",     "batch_size",
    "student",   "teacher",       "data",      "preset",         "budget",     "kd",
    "cwd",       "sskd",          "optimizer", "schedule",       "checkpoint", "evaluate",
    "log_every", "deterministic", "prefetch",  "wire_dtype",     "stages",     "channel_transform",
    "tat",       "accumulate",    "autocast",  "sync_batch_norm"};
constexpr std::string_view kStudent[] = {"arch",  "archive", "width", "num_classes", "in_channels",
                                         "image", "mean",    "std",   "weights",     "weights_modules"};
constexpr std::string_view kData[] = {
    "format",          "path",       "train_size",      "train_limit",  "test_limit",       "unlabelled",
    "holdout",         "transforms", "unlabelled_size", "ignore_label", "shrink",           "on_bad_image",
    "bad_image_limit", "split",      "pairs",           "label_map",    "reduce_zero_label"};
constexpr std::string_view kSplit[] = {"test", "by", "seed"};
constexpr std::string_view kPairs[] = {"train", "test"};
constexpr std::string_view kPairsOf[] = {"images", "labels", "list"};
constexpr std::string_view kTransforms[] = {"train", "test"};
constexpr std::string_view kLength[] = {"epochs", "steps"};
constexpr std::string_view kKd[] = {"temperature", "weight"};
constexpr std::string_view kCwd[] = {"temperature", "weight", "kd_weight", "kd_temperature"};
constexpr std::string_view kLastStage[] = {"weight", "kd_weight", "kd_temperature"};
constexpr std::string_view kSskd[] = {"policy",           "stages",       "head",      "adapter",    "feature_loss",
                                      "reduction",        "tap_position", "frozen_bn", "restart_lr", "phase_shares",
                                      "spatial_mismatch", "select",       "patience",  "finetune",   "unlabelled_ok",
                                      "select_by"};
constexpr std::string_view kSskdStage[] = {"student", "teacher", "name", "share", "optimizer", "schedule"};
constexpr std::string_view kSskdHead[] = {"share", "optimizer", "schedule", "loss", "label_smoothing", "init"};
constexpr std::string_view kFinetune[] = {"epochs", "steps", "lr"};
constexpr std::string_view kOptimizer[] = {"type",      "lr",    "momentum", "weight_decay",           "nesterov",
                                           "clip_norm", "betas", "eps",      "decay_norms_and_biases", "lr_mult",
                                           "ema_decay"};
constexpr std::string_view kLrMult[] = {"modules", "factor"};
constexpr std::string_view kSchedule[] = {"type",       "warmup",    "milestones", "gamma",           "power",
                                          "min_factor", "pct_start", "div_factor", "final_div_factor"};
constexpr std::string_view kCheckpoint[] = {"every"};
constexpr std::string_view kEvaluate[] = {"every", "teacher", "flip", "scales", "window", "stride"};
constexpr std::string_view kStage[] = {"name",     "trainable", "epochs",        "steps",         "optimizer",
                                       "schedule", "frozen_bn", "teacher_input", "student_input", "select",
                                       "patience", "losses",    "unlabelled_ok", "select_by"};
constexpr std::string_view kLoss[] = {"type",    "name",         "weight",          "student", "teacher",
                                      "adapter", "tap_position", "weight_schedule", "own"};
constexpr std::string_view kWeightSchedule[] = {"type", "warmup", "start", "stop"};
constexpr std::string_view kOwn[] = {"lr_mult", "constant_lr", "weight_decay"};

constexpr JobSection kSections[] = {
    {"", kTop},
    {"student", kStudent},
    {"data", kData},
    {"data.transforms", kTransforms},
    {"data.split", kSplit},
    {"data.pairs", kPairs},
    {"data.pairs[]", kPairsOf},
    {"budget", kLength},
    {"kd", kKd},
    {"cwd", kCwd},
    {"channel_transform", kLastStage},
    {"tat", kLastStage},
    {"sskd", kSskd},
    {"sskd.stages[]", kSskdStage},
    {"sskd.head", kSskdHead},
    {"sskd.finetune", kFinetune},
    {"optimizer", kOptimizer},
    {"optimizer.lr_mult[]", kLrMult},
    {"schedule", kSchedule},
    {"checkpoint", kCheckpoint},
    {"evaluate", kEvaluate},
    {"stages[]", kStage},
    {"stages[].losses[]", kLoss},
    {"stages[].losses[].weight_schedule", kWeightSchedule},
    {"stages[].losses[].own", kOwn},
};

}  // namespace

std::span<const JobSection> JobSections() { return kSections; }

KeyList JobSectionKeys(std::string_view name) {
  for (const JobSection& section : kSections) {
    if (section.name == name) return section.keys;
  }
  std::abort();  // a section name is a literal of this folder
}

}  // namespace distill
