#include "coordinator/jobfile/size_checks.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/plan/loss_schema.h"
#include "common/plan/teacher_requests.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/wire/limits.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

// Bytes as doubles: whole up to 2^53, and a sum of absurd sizes does not wrap around.
using Bytes = double;

constexpr Bytes kMiB = 1 << 20;

// "304.0 MiB"; bytes in full below one MiB.
std::string Text(Bytes bytes) {
  if (bytes < kMiB) return StrCat(static_cast<uint64_t>(bytes), " bytes");
  const bool gib = bytes >= 1024 * kMiB;
  char text[64];
  std::snprintf(text, sizeof text, "%.1f %s", bytes / kMiB / (gib ? 1024 : 1), gib ? "GiB" : "MiB");
  return text;
}

// A teacher's tap as it travels.
struct Answer {
  TapRequest request;
  TapShape shape;
};

Bytes PerImage(const Answer& answer) {
  return static_cast<Bytes>(LayoutOf(answer.shape, answer.request.encoding).bytes);
}

// "output [19, 512, 1024] x 4 bytes"
std::string Text(const Answer& answer) {
  const std::string& tap = answer.request.tap;
  return StrCat(tap.empty() ? "output" : StrCat("'", tap, "'"), " ", ShapeText(answer.shape), " x ",
                SizeOf(answer.request.encoding.dtype), " bytes");
}

// What a stage asks for, of what the teacher has.
std::vector<Answer> AnswersOf(const StagePlan& stage, const ModelTaps& teacher, WireDtype maps) {
  std::vector<Answer> answers;
  for (const TapRequest& request : TeacherRequestsOf(stage, maps).taps) {
    const ServedTap* served = request.tap.empty() ? nullptr : teacher.Find(request.tap);
    if (request.tap.empty()) {
      answers.push_back({request, teacher.output});
    } else if (served != nullptr) {
      answers.push_back({request, served->shape});
    }
  }
  return answers;
}

void CheckAnswers(const std::string& where, const std::vector<Answer>& answers, const JobPlan& plan, uint32_t images,
                  const YamlMark& mark, Problems* problems) {
  Bytes per_image = 0;
  std::string sum;
  for (const Answer& answer : answers) {
    per_image += PerImage(answer);
    StrAppend(&sum, sum.empty() ? "" : " + ", Text(answer));
  }
  const Bytes total = per_image * images;
  const Bytes prefetch = static_cast<Bytes>(plan.prefetch_bytes);
  if (total <= std::min(prefetch, static_cast<Bytes>(kMaxAnswerBytes))) return;
  const bool raise = total <= static_cast<Bytes>(kMaxAnswerBytes);
  const bool narrow = plan.wire_dtype == "f32" && std::any_of(answers.begin(), answers.end(), [](const Answer& one) {
                        return one.shape.size() == 3 && !one.request.tap.empty();
                      });
  problems->Add(
      mark, StrCat(where, ": the teacher's answers to one step of a rank, ", images, images == 1 ? " image" : " images",
                   " x (", sum, "), are ", Text(total), "; ",
                   raise ? StrCat("prefetch is ", Text(prefetch),
                                  ": set prefetch: ", static_cast<uint64_t>(std::ceil(total / kMiB)), "MiB or more")
                         : StrCat("a teacher answers with at most ", Text(static_cast<Bytes>(kMaxAnswerBytes)),
                                  " at once: take smaller taps"),
                   ", a smaller batch_size", narrow ? ", more students, or wire_dtype: f16" : " or more students"));
}

void CheckPixels(const JobPlan& plan, uint32_t images, const YamlMark& mark, Problems* problems) {
  const ModelSpec& spec = plan.student;
  const Bytes image = static_cast<Bytes>(spec.in_channels) * spec.image_height * spec.image_width;
  if (images > kMaxBatchImages) {
    problems->Add(
        mark,
        StrCat("batch_size: one step of a rank has ", images, " images (", plan.batch_size, " over students ",
               plan.students, plan.accumulate > 1 ? StrCat(" in ", plan.accumulate, " parts") : "",
               "), a teacher takes at most ", kMaxBatchImages, " at once; take a smaller batch_size or more students"));
  }
  if (image * images <= static_cast<Bytes>(kMaxPixelBytes)) return;
  problems->Add(
      mark, StrCat("batch_size: the pixels of one step of a rank, ", images, images == 1 ? " image" : " images", " x [",
                   spec.in_channels, ", ", spec.image_height, ", ", spec.image_width, "], are ", Text(image * images),
                   " and have to fit one message to the teacher of ", Text(static_cast<Bytes>(kMaxPixelBytes)),
                   "; take a smaller batch_size, more students or smaller images"));
}

// Whether the layers that a loss brings along normalise over the batch.
bool HasOwnBatchNorm(const LossPlan& loss) {
  const auto text = [&](std::string_view knob) {
    const auto found = loss.knobs.find(std::string(knob));
    const std::string* value = found == loss.knobs.end() ? nullptr : std::get_if<std::string>(&found->second);
    return value == nullptr ? std::string() : *value;
  };
  if (const LossSchema* schema = FindLossSchema(loss.type); schema != nullptr && schema->batch_norm) return true;
  if (loss.adapter.find("_bn") != std::string::npos || text("norm") == "batchnorm") return true;
  return text("embed_bn") == "batch" &&
         (text("gamma").ends_with("_bn") || text("phi").ends_with("_bn") || text("theta").ends_with("_bn"));
}

// In training a batch norm needs two values a channel: over the images of a rank, or of all with sync_batch_norm, and
// the positions of the map.
void CheckNorms(const std::string& where, const StagePlan& stage, const JobDraft& job, const Architecture& student,
                uint32_t images, Problems* problems) {
  const bool over_ranks = job.plan.sync_batch_norm && job.plan.students > 1;
  if (images != 1 || over_ranks || stage.steps == 0) return;
  const auto add = [&](std::string_view what) {
    problems->Add(
        job.batch_mark,
        StrCat(where, ": ", what,
               " trains with one value a channel (1 image a rank, map [1, 1]), of which there is no "
               "variance; give each rank two images or more (batch_size: ",
               2 * job.plan.students * job.plan.accumulate, "), take larger images, or leave it out of trainable"));
  };
  for (const LossPlan& loss : stage.losses) {
    const bool one = loss.student_height * loss.student_width == 1;
    if (loss.weight != 0 && one && HasOwnBatchNorm(loss)) {
      add(StrCat("the batch norm in the own layers of loss '", loss.name, "'"));
    }
  }
  bool runs = stage.student_input.empty();
  for (const TapInfo& tap : student.taps()) {
    const bool trains =
        stage.frozen_bn == "train" || std::any_of(stage.trainable.begin(), stage.trainable.end(),
                                                  [&](const std::string& module) { return IsUnder(tap.path, module); });
    const bool one = tap.shape.size() == 3 && tap.shape[1] * tap.shape[2] == 1;
    if (runs && trains && one && tap.kind == ModuleKind::kBatchNorm2d) {
      add(StrCat("the batch norm '", tap.path, "'"));
      return;  // those behind it have the same cause
    }
    if (tap.path == stage.student_input) runs = true;
    if (tap.path == stage.student_until) return;
  }
}

}  // namespace

void CheckSizes(const JobDraft& job, const Architecture& student, const ModelTaps* teacher, Problems* problems) {
  const JobPlan& plan = job.plan;
  const uint64_t shares = uint64_t{plan.students} * plan.accumulate;
  if (shares == 0 || plan.batch_size % shares != 0) return;             // reported by the reader
  const auto images = static_cast<uint32_t>(plan.batch_size / shares);  // that a rank computes at once
  const StatusOr<WireDtype> maps = ParseWireDtype(plan.wire_dtype);
  bool reads_teacher = false;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const StagePlan& stage = plan.stages[i];
    const std::string where =
        job.preset.empty() ? StrCat("stages[", i, "]") : StrCat("stage '", stage.name, "' of preset ", job.preset);
    CheckNorms(where, stage, job, student, images, problems);
    if (!stage.needs_teacher) continue;
    reads_teacher = true;
    if (teacher == nullptr || !maps.ok()) continue;
    CheckAnswers(where, AnswersOf(stage, *teacher, *maps), plan, images, job.prefetch_mark, problems);
  }
  if (reads_teacher) CheckPixels(plan, images, job.batch_mark, problems);
  if (!plan.evaluate_teacher || teacher == nullptr) return;
  // The student asks for as many images at once as fit; one has to.
  const Answer output{{"", {WireDtype::kF32}}, teacher->output};
  const Bytes room = std::min(static_cast<Bytes>(plan.prefetch_bytes), static_cast<Bytes>(kMaxAnswerBytes));
  if (PerImage(output) <= room) return;
  problems->Add(job.evaluate_mark,
                StrCat("evaluate.teacher: the teacher's answer to one image, ", Text(output), ", is ",
                       Text(PerImage(output)), ", more than ",
                       room < static_cast<Bytes>(kMaxAnswerBytes)
                           ? StrCat("prefetch ", Text(room), "; set prefetch: ",
                                    static_cast<uint64_t>(std::ceil(PerImage(output) / kMiB)), "MiB or more, or")
                           : StrCat("the ", Text(room), " a teacher answers with at once;"),
                       " evaluate: {teacher: false}"));
}

}  // namespace distill
