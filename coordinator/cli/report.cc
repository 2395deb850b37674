#include "coordinator/cli/report.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "coordinator/cli/job_progress.h"
#include "coordinator/cli/plan_view.h"
#include "coordinator/cli/report_curves.h"
#include "coordinator/cli/report_plot.h"
#include "coordinator/cli/report_style.h"
#include "coordinator/cli/results_view.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

// A cell: text, or HTML that was made here.
struct Cell {
  Cell(std::string_view text) : html(EscapeHtml(text)) {}    // NOLINT: texts are cells
  Cell(const std::string& text) : html(EscapeHtml(text)) {}  // NOLINT
  Cell(const char* text) : html(EscapeHtml(text)) {}         // NOLINT
  static Cell Code(std::string_view text) {
    Cell cell("");
    if (!text.empty()) cell.html = StrCat("<code>", EscapeHtml(text), "</code>");
    return cell;
  }
  std::string html;
};

// Title and class of a column: "r" number, "n" not broken, "t" long text, "".
struct Column {
  const char* title;
  const char* kind;
};

class HtmlTable {
 public:
  explicit HtmlTable(std::vector<Column> columns) : columns_(std::move(columns)) {
    html_ = "<div class=\"scroll\"><table><thead><tr>";
    for (const Column& column : columns_) {
      StrAppend(&html_, "<th scope=\"col\" class=\"", column.kind, "\">", column.title, "</th>");
    }
    html_ += "</tr></thead><tbody>\n";
  }
  void Row(const std::vector<Cell>& cells, std::string_view kind = "") {
    StrAppend(&html_, "<tr", kind.empty() ? "" : StrCat(" class=\"", kind, "\""), ">");
    for (size_t i = 0; i < cells.size(); ++i) {
      StrAppend(&html_, "<td class=\"", columns_[i].kind, "\">", cells[i].html, "</td>");
    }
    html_ += "</tr>\n";
  }
  std::string Html() const { return html_ + "</tbody></table></div>\n"; }

 private:
  const std::vector<Column> columns_;
  std::string html_;
};

std::string Section(std::string_view title, std::string_view html) {
  return StrCat("<section>\n<h2>", title, "</h2>\n", html, "</section>\n");
}

std::string Details(std::string_view summary, std::string_view html) {
  return StrCat("<details><summary>", summary, "</summary>\n", html, "</details>\n");
}

std::string StageName(const v1::Job& job, uint32_t stage) {
  if (stage >= static_cast<uint32_t>(job.plan().stages_size())) return StrCat("stage ", uint64_t{stage} + 1);
  return job.plan().stages(static_cast<int>(stage)).name();
}

std::string Head(const ReportInput& input, absl::TimeZone zone) {
  const v1::Job& job = input.job;
  std::string out = StrCat("<header>\n<h1>", EscapeHtml(job.name()), "</h1>\n<p>", EscapeHtml(job.id()),
                           ": <span class=\"state ", StateName(job.state()), "\">", StateName(job.state()), "</span>",
                           job.reason().empty() ? "" : StrCat(", ", EscapeHtml(job.reason())), "</p>\n");
  const JobPosition position = PositionOf(job);
  StrAppend(&out, "<p>", position.done_steps, " of ", position.total_steps, " steps, ", job.stages_done_size(), " of ",
            job.plan().stages_size(), " stages committed");
  if (job.started_time() > 0) StrAppend(&out, ", ", FormatDuration(ElapsedSeconds(job, input.now)));
  StrAppend(&out, ", ", job.restarts(), job.restarts() == 1 ? " restart" : " restarts", ".</p>\n");
  HtmlTable table({{"Submitted", "n"}, {"Started", "n"}, {"Finished", "n"}, {"Report made", "n"}});
  table.Row({FormatTime(job.submitted_time(), zone), FormatTime(job.started_time(), zone),
             FormatTime(job.finished_time(), zone), FormatTime(input.now, zone)});
  return StrCat(out, table.Html(), "</header>\n");
}

std::string Results(const v1::Job& job) {
  HtmlTable table({{"Model", "n"},
                   {"Network", "n"},
                   {"State", "n"},
                   {"Test set", "r"},
                   {"Parameters", "r"},
                   {"Size", "r"},
                   {"Wall time", "r"}});
  for (const ResultRow& row : ResultRows({job})) {
    table.Row({row.model, row.network, row.state, row.score, row.parameters, row.size, row.wall_time});
  }
  return Section("Results", table.Html());
}

std::string Timeline(const ReportInput& input, const std::vector<RankGroup>& groups) {
  const v1::Job& job = input.job;
  const double from = job.submitted_time();
  const double end = job.finished_time() > 0 ? job.finished_time() : std::max(input.now, from);
  const double started = job.started_time();
  std::vector<TimelineRow> rows;
  const double waited = (started > 0 ? started : end) - from;
  if (started <= 0 || waited > 0.02 * (end - from)) {
    rows.push_back(
        {StrCat("waiting for students and teachers, ", FormatDuration(waited)), from, from + waited, "wait"});
  }
  const JobPosition position = PositionOf(job);
  double begin = started;
  for (int i = 0; i < job.plan().stages_size(); ++i) {
    const v1::StagePlan& stage = job.plan().stages(i);
    const v1::StageResult* const result = ResultOf(job, i);
    const std::string name = StrCat(i + 1, " ", stage.name());
    if (result != nullptr) {
      rows.push_back({StrCat(name, ", ", stage.steps(), " steps, ", FormatDuration(result->committed_time() - begin)),
                      begin, result->committed_time(), "done"});
      begin = result->committed_time();
    } else if (started > 0 && i == position.stage) {
      rows.push_back({StrCat(name, ", ", position.step, " of ", stage.steps(), " steps, ", FormatDuration(end - begin)),
                      begin, end, IsEnded(job.state()) ? "stopped" : "now"});
    } else {
      rows.push_back({StrCat(name, ", ", stage.steps(), " steps, not started"), 0, 0, ""});
    }
  }
  std::vector<TimelineGap> gaps;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (!groups[i].lost.has_value()) continue;
    const bool formed = i + 1 < groups.size();
    gaps.push_back({*groups[i].lost, formed ? groups[i + 1].formed : end,
                    formed ? StrCat("generation ", groups[i + 1].generation) : "not formed again"});
  }
  return Section("Timeline", RenderTimeline(rows, gaps, from, end));
}

std::string Plots(const ReportInput& input, const std::vector<RankGroup>& groups) {
  const std::vector<PlotMark> stages = StageMarks(input.job.plan());
  std::vector<PlotMark> marks = stages;
  for (PlotMark& mark : RestartMarks(input.history, groups)) marks.push_back(std::move(mark));
  const std::vector<PlotSeries> loss = LossSeries(input.history);
  std::string out = Section(
      "Loss",
      StrCat(RenderPlot(loss, marks, {.name = "loss by step"}),
             loss.empty() ? ""
                          : Details("logarithmic",
                                    RenderPlot(loss, marks, {.name = "loss by step, logarithmic", .log = true}))));
  out += Section("Results on the test set",
                 RenderPlot(ScoreSeries(input.job, input.history), stages, {.name = "metrics by step", .unit = "%"}));
  out += Section("Where a step's time goes", RenderPlot(StepPartSeries(input.history), stages,
                                                        {.name = "parts of a step", .unit = "ms", .stacked = true}));
  out += Section("Speed", RenderPlot(SpeedSeries(input.history), stages,
                                     {.name = "images per second by step", .unit = "images/s", .from_zero = true}));
  return out;
}

std::string StagesAndFiles(const v1::Job& job, absl::TimeZone zone) {
  std::string out;
  if (job.stages_done().empty()) {
    out += "<p class=\"muted\">No stage was committed.</p>\n";
  } else {
    HtmlTable table({{"#", "r"},
                     {"Stage", "n"},
                     {"Loss", "r"},
                     {"Test set", "r"},
                     {"Time", "r"},
                     {"Committed", "n"},
                     {"Checkpoint and SHA-256 of its manifest", "t"}});
    for (const v1::StageResult& result : job.stages_done()) {
      Cell files = Cell::Code(result.checkpoint());
      StrAppend(&files.html, " ", Cell::Code(result.digest()).html);
      table.Row({StrCat(uint64_t{result.stage()} + 1), StageName(job, result.stage()), FormatNumber(result.loss()),
                 FormatScore(result.score()), FormatDuration(result.seconds()),
                 FormatTime(result.committed_time(), zone), files});
    }
    out += table.Html();
  }
  if (HasArtifacts(job)) {
    const v1::Artifacts& files = job.artifacts();
    HtmlTable table({{"File", "n"}, {"Path", "t"}, {"Size", "r"}});
    if (!files.safetensors().empty()) {
      table.Row({"weights", Cell::Code(files.safetensors()), FormatBytes(files.safetensors_bytes())});
    }
    if (!files.torchscript().empty()) {
      table.Row({"program", Cell::Code(files.torchscript()), FormatBytes(files.torchscript_bytes())});
    }
    StrAppend(&out, "<h3>The student's files</h3>\n", table.Html());
  }
  return Section("Stages and files", out);
}

// "91.20%", "-" of nothing.
std::string ShareText(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-" : FormatPercent(static_cast<double>(part) / static_cast<double>(whole));
}

// Counts by label (rows) and answer (columns), the share of its row as the shade; beyond so many classes a matrix is
// not read, and the commonest mistakes are listed.
constexpr int kMatrixClasses = 32;
constexpr size_t kMistakes = 20;

std::string ConfusionMatrix(const v1::ClassResults& results) {
  const int classes = results.labelled_size();
  std::string out = "<div class=\"scroll\"><table class=\"matrix\"><thead><tr><th scope=\"col\">label \\ answer</th>";
  for (int k = 0; k < classes; ++k) StrAppend(&out, "<th scope=\"col\" class=\"r\">", k, "</th>");
  out += "</tr></thead><tbody>\n";
  for (int label = 0; label < classes; ++label) {
    StrAppend(&out, "<tr><th scope=\"row\" class=\"r\">", label, "</th>");
    for (int answer = 0; answer < classes; ++answer) {
      const uint64_t count = results.confusion(label * classes + answer);
      // Five shades; what is there at all has one.
      const uint64_t shade =
          count == 0 ? 0 : 1 + std::min<uint64_t>(4, count * 5 / std::max<uint64_t>(1, results.labelled(label)));
      StrAppend(&out, "<td class=\"r s", shade, "\">", count, "</td>");
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string Mistakes(const v1::ClassResults& results) {
  const int classes = results.labelled_size();
  std::vector<std::pair<uint64_t, int>> found;  // count, place
  for (int i = 0; i < results.confusion_size(); ++i) {
    if (i / classes != i % classes && results.confusion(i) > 0) found.emplace_back(results.confusion(i), i);
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  if (found.size() > kMistakes) found.resize(kMistakes);
  HtmlTable table({{"Label", "r"}, {"Answer", "r"}, {"Count", "r"}, {"Of the label", "r"}});
  for (const auto& [count, place] : found) {
    table.Row({StrCat(place / classes), StrCat(place % classes), StrCat(count),
               ShareText(count, results.labelled(place / classes))});
  }
  return table.Html();
}

std::string Classes(const v1::Job& job) {
  const v1::ClassResults& student = job.artifacts().student_classes();
  const v1::ClassResults& teacher = job.artifacts().teacher_classes();
  const int classes = student.labelled_size();
  if (classes == 0) return "";
  const auto iou = [](const v1::ClassResults& results, int k) {
    if (k >= results.labelled_size()) return std::string("-");
    return ShareText(results.right(k), results.labelled(k) + results.answered(k) - results.right(k));
  };
  const bool compare = teacher.labelled_size() == classes;
  std::vector<Column> columns = {{"Class", "r"}, {"Labelled", "r"}, {"Recall", "r"}, {"Precision", "r"}, {"IoU", "r"}};
  if (compare) {
    columns.push_back({"Teacher&#39;s recall", "r"});
    columns.push_back({"Teacher&#39;s IoU", "r"});
  }
  HtmlTable table(columns);
  for (int k = 0; k < classes; ++k) {
    std::vector<Cell> row = {StrCat(k), StrCat(student.labelled(k)), ShareText(student.right(k), student.labelled(k)),
                             ShareText(student.right(k), student.answered(k)), iou(student, k)};
    if (compare) {
      row.push_back(ShareText(teacher.right(k), teacher.labelled(k)));
      row.push_back(iou(teacher, k));
    }
    table.Row(row);
  }
  std::string out = table.Html();
  if (student.confusion_size() == int64_t{classes} * classes) {
    if (classes <= kMatrixClasses) StrAppend(&out, "<h3>Confusion matrix</h3>\n", ConfusionMatrix(student));
    StrAppend(&out, "<h3>Commonest mistakes</h3>\n", Mistakes(student));
  }
  return Section("Classes, on the test set", out);
}

std::string Environment(const ReportInput& input) {
  const v1::JobPlan& plan = input.job.plan();
  HtmlTable facts({{"What", "n"}, {"Value", "t"}});
  facts.Row({"coordinator", StrCat(input.fleet.coordinator_version(), ", epoch ", input.fleet.coordinator_epoch())});
  facts.Row({"distillctl", input.cli_version});
  if (!input.job.file_name().empty()) facts.Row({"job file", input.job.file_name()});
  for (const std::string& item : input.job.overrides()) facts.Row({"override", Cell::Code(item)});
  facts.Row({"seed", StrCat(plan.seed())});
  facts.Row({"threads of each rank", StrCat(plan.threads())});
  facts.Row({"device asked for", plan.device()});
  facts.Row({"deterministic", plan.deterministic() ? "yes" : "no"});
  facts.Row({"generation", StrCat(input.job.generation())});
  for (const v1::TeacherRef& teacher : plan.teachers()) {
    facts.Row({StrCat("digest of teacher ", teacher.model()), Cell::Code(teacher.digest())});
  }
  HtmlTable workers(
      {{"Part", "n"}, {"Worker", "n"}, {"Device", "n"}, {"Address", "n"}, {"Version", "n"}, {"State", "n"}});
  const auto add = [&](const std::string& part, const std::string& id) {
    for (const v1::WorkerInfo& worker : input.fleet.workers()) {
      if (worker.id() != id) continue;
      workers.Row({part, id, worker.device(), worker.address(), worker.version(), worker.state()});
      return;
    }
    workers.Row({part, id, "-", "-", "-", "not registered any more"});
  };
  for (int rank = 0; rank < input.job.ranks_size(); ++rank) add(StrCat("rank ", rank), input.job.ranks(rank));
  for (const v1::WorkerInfo& worker : input.fleet.workers()) {
    const bool serves = std::any_of(worker.models().begin(), worker.models().end(), [&](const v1::ServedModel& model) {
      return std::any_of(plan.teachers().begin(), plan.teachers().end(), [&](const v1::TeacherRef& teacher) {
        return teacher.model() == model.name() && teacher.digest() == model.digest();
      });
    });
    if (serves) add("serves the teacher", worker.id());
  }
  return Section("Environment",
                 StrCat(facts.Html(), "<h3>Workers, as registered when the report was made</h3>\n", workers.Html()));
}

std::string Events(const std::vector<v1::JobEvent>& events, absl::TimeZone zone) {
  if (events.empty()) return Section("Events", "<p class=\"muted\">None.</p>\n");
  HtmlTable table({{"Time", "n"}, {"Level", "n"}, {"Source", "n"}, {"Text", "t"}});
  for (const v1::JobEvent& event : events) {
    const std::string level = event.level() == v1::EVENT_LEVEL_ERROR     ? "error"
                              : event.level() == v1::EVENT_LEVEL_WARNING ? "warning"
                                                                         : "info";
    table.Row({FormatTime(event.time(), zone), level, event.source(), event.text()}, level);
  }
  return Section("Events", table.Html());
}

std::string Plan(const ReportInput& input) {
  // Lines of a <pre>: each is escaped, the line ends stay.
  const auto lines = [](std::string_view text) {
    std::string out;
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size());
      StrAppend(&out, EscapeHtml(text.substr(0, end)), "\n");
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    return out;
  };
  return Section("Plan", StrCat("<pre>", lines(RenderPlan(input.job.plan(), {})), "</pre>\n",
                                Details("every field, as JSON", StrCat("<pre>", lines(input.plan_json), "</pre>\n"))));
}

}  // namespace

std::string RenderReport(const ReportInput& input, absl::TimeZone zone) {
  const std::vector<RankGroup> groups = GroupsOf(input.events);
  // The policy lets nothing run or load, whatever a text might hold.
  return StrCat(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>",
      EscapeHtml(input.job.name()), " - Distillery</title>\n<style>", kReportStyle, "</style>\n</head>\n<body>\n",
      Head(input, zone), Results(input.job), Timeline(input, groups), Plots(input, groups), Classes(input.job),
      StagesAndFiles(input.job, zone), Environment(input), Events(input.events, zone), Plan(input),
      "</body>\n</html>\n");
}

StatusOr<std::string> ReportFileName(const v1::Job& job) {
  const std::string& id = job.id();
  const bool plain = !id.empty() && id[0] != '.' && id[0] != '-' && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_';
  });
  if (plain) return StrCat(id, "-report.html");
  return absl::FailedPreconditionError(StrCat("the job's id '", id, "' is no file name; give --out FILE"));
}

Status WriteReport(const std::string& path, std::string_view html, bool force) {
  struct stat info;
  const bool exists = stat(path.c_str(), &info) == 0;
  // A device or a pipe is written to, never replaced.
  const bool stream = exists && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
  if (exists && !stream && !force) {
    return absl::AlreadyExistsError(StrCat("'", path, "' exists; give --force to replace it, or another --out"));
  }
  const std::string target = stream ? path : StrCat(path, ".", getpid(), ".tmp");
  const auto failed = [&](int error) {
    if (!stream) unlink(target.c_str());
    return absl::UnavailableError(StrCat("cannot write '", path, "': ", std::strerror(error)));
  };
  const int fd = open(target.c_str(), O_WRONLY | O_CLOEXEC | (stream ? 0 : O_CREAT | O_EXCL), 0644);
  if (fd < 0) return absl::UnavailableError(StrCat("cannot write '", path, "': ", std::strerror(errno)));
  size_t done = 0;
  while (done < html.size()) {
    const ssize_t n = write(fd, html.data() + done, html.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      close(fd);
      return failed(error);
    }
    done += static_cast<size_t>(n);
  }
  if (close(fd) != 0) return failed(errno);
  if (stream) return OkStatus();
  // link() refuses when somebody has made the file meanwhile; rename() replaces it.
  if ((force ? rename(target.c_str(), path.c_str()) : link(target.c_str(), path.c_str())) != 0) return failed(errno);
  if (!force) unlink(target.c_str());
  return OkStatus();
}

}  // namespace distill::cli
