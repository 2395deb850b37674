#include "coordinator/cli/progress_view.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "coordinator/cli/job_progress.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

constexpr int kMaxNameWidth = 24;
constexpr int kMaxBarWidth = 40;
constexpr double kStaleSeconds = 20;  // a report older than this is said to be old

std::string TermsText(const v1::Progress& progress) {
  if (progress.terms().empty()) return "";
  return StrCat(" (",
                absl::StrJoin(progress.terms(), ", ",
                              [](std::string* out, const v1::NamedValue& term) {
                                StrAppend(out, term.name(), " ", FormatNumber(term.value()));
                              }),
                ")");
}

std::string EtaText(const v1::Job& job, double now) {
  const Eta eta = EstimateEta(job, now);
  if (!eta.stage_seconds.has_value()) return "";
  std::string text = StrCat("eta ", FormatDuration(*eta.stage_seconds));
  if (job.plan().stages_size() > 1) StrAppend(&text, " (job ", FormatDuration(*eta.job_seconds), ")");
  return text;
}

std::string ScoreText(const v1::Job& job) {
  const v1::Score &student = StudentScore(job), &teacher = TeacherScore(job);
  std::string text = student.metrics().empty() ? "" : FormatScore(student);
  if (teacher.metrics().empty()) return text;
  return StrCat(text, text.empty() ? "" : " ", "(teacher ", FormatScore(teacher), ")");
}

std::string RestartsText(uint32_t restarts) { return StrCat(restarts, restarts == 1 ? " restart" : " restarts"); }

int StepWidth(const v1::JobPlan& plan) {
  uint64_t most = 0;
  for (const v1::StagePlan& stage : plan.stages()) most = std::max<uint64_t>(most, stage.steps());
  return 2 * static_cast<int>(std::to_string(most).size()) + 1;
}

// "  > whole   412/1050  training"
std::vector<Span> StageLine(const v1::Job& job, int index, const JobPosition& position, int name_width,
                            const TextOptions& options) {
  const v1::StagePlan& stage = job.plan().stages(index);
  const v1::StageResult* result = ResultOf(job, index);
  const bool done = result != nullptr || index < position.stage;
  const bool current = !done && index == position.stage;
  const bool failed = current && (job.state() == v1::JOB_STATE_FAILED || job.state() == v1::JOB_STATE_CANCELLED);
  const bool active = current && job.state() == v1::JOB_STATE_RUNNING;

  Span mark{options.utf8 ? "·" : "-", Style::kDim};
  Style name_style = Style::kDim;
  if (done) {
    mark = {options.utf8 ? "✓" : "*", Style::kGreen};
    name_style = Style::kNone;
  } else if (failed) {
    mark = {options.utf8 ? "✗" : "!", Style::kRed};
    name_style = Style::kBold;
  } else if (active) {
    mark = {options.utf8 ? "▶" : ">", Style::kCyan};
    name_style = Style::kBold;
  }
  const uint64_t step = done ? stage.steps() : current ? position.step : 0;
  const std::string name = PadRight(Truncate(Printable(stage.name()), name_width, options.utf8), name_width);
  const std::string steps = PadLeft(StrCat(step, "/", stage.steps()), StepWidth(job.plan()));
  std::vector<Span> line = {{"  "}, mark, {" "}, {name, name_style}, {StrCat("  ", steps)}};
  if (result != nullptr) {
    line.push_back({StrCat("  loss ", FormatNumber(result->loss()))});
    if (!result->score().metrics().empty()) line.push_back({StrCat("  ", FormatScore(result->score()))});
    line.push_back({StrCat("  ", FormatDuration(result->seconds())), Style::kDim});
  } else if (active && HasProgress(job) && !job.progress().phase().empty()) {
    line.push_back({StrCat("  ", job.progress().phase()), Style::kCyan});
  }
  return line;
}

}  // namespace

std::string RenderBar(double share, int width, bool utf8) {
  if (!std::isfinite(share)) share = 0;
  width = std::max(width, 1);
  const int filled = std::clamp(static_cast<int>(std::floor(share * width)), 0, width);
  std::string bar;
  for (int i = 0; i < width; ++i) StrAppend(&bar, i < filled ? (utf8 ? "━" : "#") : (utf8 ? "─" : "."));
  return bar;
}

std::vector<std::string> RenderProgress(const v1::Job& job, double now, std::string_view notice,
                                        const TextOptions& options) {
  const JobPosition position = PositionOf(job);
  const int stages = job.plan().stages_size();
  std::vector<std::vector<Span>> head;
  head.push_back({{job.name(), Style::kBold},
                  {StrCat("  ", job.id(), "  "), Style::kDim},
                  {StateName(job.state()), StateStyle(job.state())},
                  {StrCat("  ", FormatDuration(ElapsedSeconds(job, now)))}});
  if (job.restarts() > 0) head.back().push_back({StrCat("  ", RestartsText(job.restarts())), Style::kYellow});
  if (!job.reason().empty()) head.push_back({{StrCat("  ", job.reason()), StateStyle(job.state())}});

  std::vector<std::vector<Span>> tail;
  if (job.state() == v1::JOB_STATE_RUNNING && position.stage < stages) {
    const double share = position.stage_steps == 0 ? 0 : static_cast<double>(position.step) / position.stage_steps;
    const std::string eta = EtaText(job, now);
    std::string after = absl::StrFormat("  %3.0f%%", std::floor(share * 100));
    if (!eta.empty()) StrAppend(&after, "  ", eta);
    // The ETA's length changes from second to second; the bar keeps its own unless the terminal is narrow.
    const int bar = std::clamp(options.width - 2 - std::max(34, DisplayWidth(after)), 5, kMaxBarWidth);
    tail.push_back({{"  "}, {RenderBar(share, bar, options.utf8), Style::kCyan}, {after}});
    if (HasProgress(job)) {
      const v1::Progress& progress = job.progress();
      // Rank 0 reports a loss only once it has made steps.
      if (progress.step() > 0) {
        tail.push_back({{"  loss "}, {FormatNumber(progress.loss()), Style::kBold}, {TermsText(progress)}});
      }
      std::string speed;
      if (progress.images_per_second() > 0 && !IsStalled(job, now)) {
        StrAppend(&speed, FormatRate(progress.images_per_second()), " img/s  ");
      }
      if (progress.step() > 0) StrAppend(&speed, "lr ", FormatNumber(progress.learning_rate()), "  ");
      StrAppend(&speed, ScoreText(job));
      while (!speed.empty() && speed.back() == ' ') speed.pop_back();
      if (!speed.empty()) tail.push_back({{StrCat("  ", speed)}});
      if (now - progress.time() > kStaleSeconds) {
        tail.push_back(
            {{StrCat("  newest report is ", FormatDuration(now - progress.time()), " old"), Style::kYellow}});
      }
    }
  }
  if (!notice.empty()) tail.push_back({{StrCat("  ", notice), Style::kYellow}});

  int name_width = 0;
  for (const v1::StagePlan& stage : job.plan().stages()) {
    name_width = std::max(name_width, DisplayWidth(Printable(stage.name())));
  }
  name_width = std::min(name_width, kMaxNameWidth);

  // The window of stages that fits: the current one, what came just before it, and as much as possible after it.
  const int limit = std::max(options.height - 1, 8);
  const int room = std::max(limit - static_cast<int>(head.size() + tail.size()), 1);
  int first = 0;
  int end = stages;
  if (stages > room) {
    const int shown = std::max(room - 2, 1);  // two lines go to the counts, when there are so many
    first = std::clamp(position.stage - shown / 2, 0, stages - shown);
    end = first + shown;
  }

  std::vector<std::string> lines;
  for (const auto& line : head) lines.push_back(RenderLine(line, options));
  const bool counts = stages > room && room >= 3;
  const std::string dots = options.utf8 ? "…" : "...";
  if (counts && first > 0)
    lines.push_back(RenderLine({{StrCat("  ", dots, " ", first, " before"), Style::kDim}}, options));
  for (int i = first; i < end; ++i)
    lines.push_back(RenderLine(StageLine(job, i, position, name_width, options), options));
  if (counts && end < stages) {
    lines.push_back(RenderLine({{StrCat("  ", dots, " ", stages - end, " more"), Style::kDim}}, options));
  }
  for (const auto& line : tail) lines.push_back(RenderLine(line, options));
  return lines;
}

namespace {

std::string At(const v1::Job& job, double now) { return StrCat("[", FormatDuration(ElapsedSeconds(job, now)), "] "); }

// "stage 3/4 whole"
std::string StageTitle(const v1::Job& job, int stage) {
  return StrCat("stage ", stage + 1, "/", job.plan().stages_size(), " ", job.plan().stages(stage).name());
}

std::string StateLine(const v1::Job& job) {
  std::string line = StrCat("job ", job.id(), " (", job.name(), ") ", StateName(job.state()));
  if (!job.reason().empty()) StrAppend(&line, ": ", job.reason());
  return line;
}

// Without time and ETA: two equal texts say that nothing has happened.
std::string ProgressText(const v1::Job& job, double now) {
  const JobPosition position = PositionOf(job);
  if (job.state() != v1::JOB_STATE_RUNNING || position.stage >= job.plan().stages_size()) return StateLine(job);
  std::string line = StrCat(StageTitle(job, position.stage), ": step ", position.step, "/", position.stage_steps);
  if (position.stage_steps > 0) {
    StrAppend(&line, " (", position.step * 100 / position.stage_steps, "%)");
  }
  if (!HasProgress(job)) return line;
  const v1::Progress& progress = job.progress();
  if (progress.step() > 0) StrAppend(&line, ", loss ", FormatNumber(progress.loss()), TermsText(progress));
  if (IsStalled(job, now)) {
    StrAppend(&line, job.reason().empty() ? ", stalled" : StrCat(", ", job.reason()));
  } else if (progress.images_per_second() > 0) {
    StrAppend(&line, ", ", FormatRate(progress.images_per_second()), " img/s");
  }
  const std::string score = ScoreText(job);
  if (!score.empty()) StrAppend(&line, ", ", score);
  if (!progress.phase().empty()) StrAppend(&line, ", ", progress.phase());
  return line;
}

}  // namespace

std::string PlainProgressLine(const v1::Job& job, double now) {
  const std::string eta = EtaText(job, now);
  return Printable(StrCat(At(job, now), ProgressText(job, now), eta.empty() ? "" : ", ", eta));
}

std::vector<std::string> PlainProgress::Update(const v1::Job& job, double now) {
  std::vector<std::string> lines;
  const auto add = [&](const std::string& text) { lines.push_back(Printable(StrCat(At(job, now), text))); };
  if ((!last_.has_value() || last_->state() != job.state()) && !IsEnded(job.state())) add(StateLine(job));
  if (last_.has_value() && job.restarts() > last_->restarts()) {
    add(StrCat("re-formed after the loss of a member (", RestartsText(job.restarts()), ")"));
  }
  for (const v1::StageResult& result : job.stages_done()) {
    const int stage = static_cast<int>(std::min<uint32_t>(result.stage(), INT32_MAX));
    if (stage >= job.plan().stages_size() || (last_.has_value() && ResultOf(*last_, stage) != nullptr)) continue;
    std::string text = StrCat(StageTitle(job, stage), " done in ", FormatDuration(result.seconds()), ": loss ",
                              FormatNumber(result.loss()));
    if (!result.score().metrics().empty()) StrAppend(&text, ", ", FormatScore(result.score()));
    add(text);
  }
  const JobPosition position = PositionOf(job);
  const bool was_running = last_.has_value() && last_->state() == v1::JOB_STATE_RUNNING;
  if (job.state() == v1::JOB_STATE_RUNNING && position.stage < job.plan().stages_size() &&
      (!was_running || PositionOf(*last_).stage != position.stage)) {
    const v1::StagePlan& stage = job.plan().stages(position.stage);
    add(StrCat(StageTitle(job, position.stage), ": ", position.step > 0 ? "goes on" : "starts", ", ", stage.steps(),
               stage.steps() == 1 ? " step" : " steps"));
  }
  if (!lines.empty()) {
    last_line_ = ProgressText(job, now);
    last_line_time_ = now;
  } else if (now - last_line_time_ >= interval_seconds_ && !IsEnded(job.state())) {
    std::string text = ProgressText(job, now);
    if (text != last_line_) {
      lines.push_back(PlainProgressLine(job, now));
      last_line_ = std::move(text);
      last_line_time_ = now;
    }
  }
  last_ = job;
  return lines;
}

std::string RenderOutcome(const v1::Job& job, const TextOptions& options) {
  std::string out = StrCat("job ", Printable(job.id()), " (", Printable(job.name()), ") ",
                           Paint(StateName(job.state()), StateStyle(job.state()), options.color));
  if (job.finished_time() > 0 && job.started_time() > 0) {
    StrAppend(&out, " after ", FormatDuration(ElapsedSeconds(job, job.finished_time())));
  }
  if (!job.reason().empty()) StrAppend(&out, ": ", Printable(job.reason()));
  StrAppend(&out, "\n");
  if (HasArtifacts(job)) {
    const v1::Artifacts& artifacts = job.artifacts();
    const std::string score = ScoreText(job);
    StrAppend(&out, "  student   ", score.empty() ? "not measured" : score, ", ",
              FormatCount(artifacts.student_parameters()), " parameters\n");
    if (!artifacts.safetensors().empty()) {
      StrAppend(&out, "  weights   ", Printable(artifacts.safetensors()), " (",
                FormatBytes(artifacts.safetensors_bytes()), ")\n");
    }
    if (!artifacts.torchscript().empty()) {
      StrAppend(&out, "  program   ", Printable(artifacts.torchscript()), " (",
                FormatBytes(artifacts.torchscript_bytes()), ")\n");
    }
  }
  return out;
}

std::string RenderWarnings(const std::vector<v1::JobEvent>& events, std::string_view logs_command,
                           const TextOptions& options) {
  std::vector<std::string> texts;  // the newest first
  for (auto event = events.rbegin(); event != events.rend(); ++event) {
    if (event->level() != v1::EVENT_LEVEL_WARNING) continue;
    std::string text = StrCat(Printable(event->source()), ": ", Printable(event->text()));
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(std::move(text));
  }
  if (texts.empty()) return "";
  const size_t shown = std::min(texts.size(), kShownWarnings);
  std::string out;
  for (size_t i = shown; i-- > 0;)
    StrAppend(&out, "  ", Paint("warning", Style::kYellow, options.color), "   ", texts[i], "\n");
  if (shown < texts.size()) {
    StrAppend(&out, "  and ", texts.size() - shown, " older warnings: ", logs_command, "\n");
  }
  return out;
}

}  // namespace distill::cli
