#include "coordinator/cli/job_view.h"

#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "coordinator/cli/job_progress.h"
#include "coordinator/cli/plan_view.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

std::string Line(std::string_view label, std::string_view text) {
  return StrCat(PadRight(label, 11), Printable(text), "\n");
}

std::string StageText(const v1::Job& job) {
  const JobPosition position = PositionOf(job);
  const int stages = job.plan().stages_size();
  if (stages == 0) return "-";
  if (position.stage >= stages) return StrCat(stages, "/", stages);
  return StrCat(position.stage + 1, "/", stages, " ", job.plan().stages(position.stage).name());
}

std::string ShareText(const v1::Job& job) {
  const JobPosition position = PositionOf(job);
  return position.total_steps == 0 ? "-" : StrCat(position.done_steps * 100 / position.total_steps, "%");
}

std::string MembersText(const v1::Job& job) {
  if (job.ranks().empty()) return StrCat("none yet, wants ", job.plan().students());
  return absl::StrJoin(job.ranks(), ", ");
}

// Why the job is in its state, where the state does not say it.
std::string ReasonText(const v1::Job& job, const TextOptions& options) {
  constexpr int kMaxWidth = 60;
  return job.state() == v1::JOB_STATE_SUCCEEDED ? "" : Truncate(Printable(job.reason()), kMaxWidth, options.utf8);
}

std::string ProgressLines(const v1::Job& job, double now) {
  const v1::Progress& progress = job.progress();
  const JobPosition position = PositionOf(job);
  std::string text = StrCat("stage ", StageText(job));
  if (position.stage < job.plan().stages_size()) StrAppend(&text, ", step ", position.step, "/", position.stage_steps);
  StrAppend(&text, ", ", ShareText(job), " of all steps");
  if (!progress.phase().empty() && !IsEnded(job.state())) StrAppend(&text, ", ", progress.phase());
  std::string out = Line("Progress", text);
  if (progress.step() > 0) {
    std::string loss = FormatNumber(progress.loss());
    for (const v1::NamedValue& term : progress.terms())
      StrAppend(&loss, ", ", term.name(), " ", FormatNumber(term.value()));
    StrAppend(&loss, ", learning rate ", FormatNumber(progress.learning_rate()));
    out += Line("Loss", loss);
  }
  if (IsStalled(job, now)) {
    out += Line("Speed", StrCat("none now, the newest report is ", FormatDuration(now - progress.time()), " old"));
  } else if (progress.images_per_second() > 0) {
    std::string speed = StrCat(FormatRate(progress.images_per_second()), " images/s");
    const Eta eta = EstimateEta(job, now);
    if (eta.stage_seconds.has_value()) {
      StrAppend(&speed, ", stage ends in about ", FormatDuration(*eta.stage_seconds), ", job in about ",
                FormatDuration(*eta.job_seconds));
    }
    out += Line("Speed", speed);
  }
  if (!progress.step_seconds().empty()) {
    out += Line("Step time",
                absl::StrJoin(progress.step_seconds(), ", ", [](std::string* part, const v1::NamedValue& value) {
                  StrAppend(part, value.name(), " ", FormatNumber(value.value() * 1000), " ms");
                }));
  }
  return out;
}

}  // namespace

std::string RenderJobList(const v1::ListJobsResponse& jobs, double now, const TextOptions& options,
                          absl::TimeZone zone) {
  if (jobs.jobs().empty()) return "no jobs; submit one: distillctl submit FILE\n";
  Table table({Left("JOB"), Left("NAME"), Left("STATE"), Left("STAGE"), Right("DONE"), Right("SCORE"),
               Left("SUBMITTED"), Right("TIME"), Left("REASON")});
  for (const v1::Job& job : jobs.jobs()) {
    table.AddRow({{job.id()},
                  {job.name()},
                  {StateName(job.state()), StateStyle(job.state())},
                  {StageText(job)},
                  {ShareText(job)},
                  {FormatHeadline(StudentScore(job))},
                  {FormatTime(job.submitted_time(), zone)},
                  {job.started_time() > 0 ? FormatDuration(ElapsedSeconds(job, now)) : "-"},
                  {ReasonText(job, options)}});
  }
  return table.Render(options);
}

std::string RenderJob(const v1::Job& job, double now, const TextOptions& options, absl::TimeZone zone) {
  std::string out = Line("Job", StrCat(job.id(), " (", job.name(), ")"));
  StrAppend(&out, PadRight("State", 11), Paint(StateName(job.state()), StateStyle(job.state()), options.color),
            job.reason().empty() ? "" : StrCat(": ", Printable(job.reason())), "\n");
  out += Line("Submitted", FormatTime(job.submitted_time(), zone));
  if (job.started_time() > 0) out += Line("Started", FormatTime(job.started_time(), zone));
  if (job.finished_time() > 0) out += Line("Finished", FormatTime(job.finished_time(), zone));
  if (job.started_time() > 0) out += Line("Time", FormatDuration(ElapsedSeconds(job, now)));
  if (!job.file_name().empty()) {
    out +=
        Line("File", job.overrides().empty() ? job.file_name()
                                             : StrCat(job.file_name(), " with ", absl::StrJoin(job.overrides(), ", ")));
  }
  out += Line("Members", MembersText(job));
  out += Line("Generation",
              StrCat(job.generation(), ", ", job.restarts(), job.restarts() == 1 ? " restart" : " restarts"));
  if (HasProgress(job)) out += ProgressLines(job, now);
  const v1::Score &student = StudentScore(job), &teacher = TeacherScore(job);
  if (!student.metrics().empty() || !teacher.metrics().empty()) {
    std::string text = StrCat("student ", FormatScore(student));
    if (!teacher.metrics().empty()) StrAppend(&text, "; teacher ", FormatScore(teacher));
    out += Line("Test set", text);
  }
  if (HasArtifacts(job)) {
    const v1::Artifacts& files = job.artifacts();
    out += Line("Parameters",
                StrCat("student ", FormatCount(files.student_parameters()),
                       files.teacher_parameters() > 0 ? StrCat(", teacher ", FormatCount(files.teacher_parameters()),
                                                               " (", FormatBytes(files.teacher_bytes()), ")")
                                                      : ""));
    if (!files.safetensors().empty()) {
      out += Line("Weights", StrCat(files.safetensors(), " (", FormatBytes(files.safetensors_bytes()), ")"));
    }
    if (!files.torchscript().empty()) {
      out += Line("Program", StrCat(files.torchscript(), " (", FormatBytes(files.torchscript_bytes()), ")"));
    }
  }
  if (!job.stages_done().empty()) {
    Table table({Right("#"), Left("STAGE"), Right("LOSS"), Right("SCORE"), Right("TIME"), Left("COMMITTED"),
                 Left("CHECKPOINT")});
    for (const v1::StageResult& result : job.stages_done()) {
      const bool known = result.stage() < static_cast<uint32_t>(job.plan().stages_size());
      table.AddRow({{StrCat(uint64_t{result.stage()} + 1)},
                    {known ? job.plan().stages(static_cast<int>(result.stage())).name() : "?"},
                    {FormatNumber(result.loss())},
                    {FormatScore(result.score())},
                    {FormatDuration(result.seconds())},
                    {FormatTime(result.committed_time(), zone)},
                    {result.checkpoint()}});
    }
    StrAppend(&out, "\nStages done\n", table.Render(options, 2));
  }
  StrAppend(&out, "\n", RenderPlan(job.plan(), options));
  return out;
}

std::string RenderEvent(const v1::JobEvent& event, const TextOptions& options, absl::TimeZone zone) {
  std::string level = "INFO";
  Style style = Style::kNone;
  if (event.level() == v1::EVENT_LEVEL_WARNING) {
    level = "WARNING", style = Style::kYellow;
  } else if (event.level() == v1::EVENT_LEVEL_ERROR) {
    level = "ERROR", style = Style::kRed;
  }
  return StrCat(FormatTime(event.time(), zone), "  ", Paint(PadRight(level, 7), style, options.color), "  ",
                PadRight(Printable(event.source()), 12), "  ", Printable(event.text()), "\n");
}

}  // namespace distill::cli
