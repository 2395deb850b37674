#include "coordinator/cli/results_view.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_format.h"
#include "common/str_cat.h"
#include "common/zoo/archive_ref.h"
#include "coordinator/cli/job_progress.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

double WallSeconds(const v1::Job& job) {
  return job.started_time() > 0 && job.finished_time() > 0 ? job.finished_time() - job.started_time() : -1;
}

std::string StageName(const v1::Job& job, uint32_t stage) {
  if (stage >= static_cast<uint32_t>(job.plan().stages_size())) return StrCat("stage ", uint64_t{stage} + 1);
  return job.plan().stages(static_cast<int>(stage)).name();
}

std::string StudentText(const v1::ModelSpec& spec) {
  return spec.width() == 0 ? ShortArch(spec.arch()) : StrCat(spec.arch(), " width ", spec.width());
}

// Of the committed stages and the one that runs.
uint64_t SkippedSteps(const v1::Job& job) {
  uint64_t skipped = 0;
  for (const v1::StageResult& stage : job.stages_done()) skipped += stage.skipped_steps();
  const bool running = job.has_progress() && job.progress().stage() >= static_cast<uint32_t>(job.stages_done_size());
  return skipped + (running ? job.progress().skipped_steps() : 0);
}

int FirstPoint(const v1::GetHistoryResponse& history, size_t limit) {
  const size_t points = static_cast<size_t>(history.points_size());
  return limit == 0 || points <= limit ? 0 : static_cast<int>(points - limit);
}

std::string CsvCell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

// Nine digits: what a float needs to come back unchanged.
std::string CsvNumber(double value) { return absl::StrFormat("%.9g", value); }

const v1::NamedValue* FindValue(const google::protobuf::RepeatedPtrField<v1::NamedValue>& values,
                                const std::string& name) {
  const auto it =
      std::find_if(values.begin(), values.end(), [&](const v1::NamedValue& value) { return value.name() == name; });
  return it == values.end() ? nullptr : &*it;
}

}  // namespace

std::vector<ResultRow> ResultRows(const std::vector<v1::Job>& jobs) {
  std::vector<ResultRow> rows;
  std::set<std::pair<std::string, std::string>> teachers;
  for (const v1::Job& job : jobs) {
    for (const v1::TeacherRef& teacher : job.plan().teachers()) {
      if (!teachers.emplace(teacher.model(), teacher.digest()).second) continue;
      // Another job may have measured what this one did not.
      const v1::Score* score = &v1::Score::default_instance();
      uint64_t parameters = 0, bytes = 0;
      for (const v1::Job& other : jobs) {
        const auto& refs = other.plan().teachers();
        const bool same = std::any_of(refs.begin(), refs.end(), [&](const v1::TeacherRef& ref) {
          return ref.model() == teacher.model() && ref.digest() == teacher.digest();
        });
        if (!same) continue;
        if (score->metrics().empty()) score = &TeacherScore(other);
        parameters = std::max<uint64_t>(parameters, other.artifacts().teacher_parameters());
        bytes = std::max<uint64_t>(bytes, other.artifacts().teacher_bytes());
      }
      rows.push_back({StrCat("teacher ", teacher.model()), StudentText(teacher.spec()), "", FormatHeadline(*score),
                      parameters > 0 ? FormatCount(parameters) : "-", bytes > 0 ? FormatBytes(bytes) : "-", "-"});
    }
  }
  for (const v1::Job& job : jobs) {
    const bool files = HasArtifacts(job);
    rows.push_back({StrCat(job.name(), " (", job.id(), ")"), StudentText(job.plan().student()), StateName(job.state()),
                    FormatHeadline(StudentScore(job)), files ? FormatCount(job.artifacts().student_parameters()) : "-",
                    files ? FormatBytes(job.artifacts().safetensors_bytes()) : "-", FormatDuration(WallSeconds(job)),
                    &job});
  }
  return rows;
}

std::string RenderResults(const std::vector<v1::Job>& jobs, const TextOptions& options) {
  Table table({Left("MODEL"), Left("NETWORK"), Left("STATE"), Right("SCORE"), Right("PARAMETERS"), Right("SIZE"),
               Right("WALL TIME")});
  for (const ResultRow& row : ResultRows(jobs)) {
    const Style style = row.job == nullptr ? Style::kNone : Style::kBold;
    const Style state = row.job == nullptr ? Style::kNone : StateStyle(row.job->state());
    table.AddRow({{row.model, style},
                  {row.network},
                  {row.state, state},
                  {row.score, style},
                  {row.parameters},
                  {row.size},
                  {row.wall_time}});
  }
  std::string out = table.Render(options);
  for (const v1::Job& job : jobs) {
    const uint64_t skipped = SkippedSteps(job);
    if (skipped == 0) continue;
    StrAppend(&out, "\n", Printable(job.name()), " (", Printable(job.id()), "): ", skipped,
              skipped == 1 ? " step was" : " steps were",
              " skipped, because a teacher's map held NaN or infinity; distillctl logs ", Printable(job.id()),
              " names the tap\n");
  }
  for (const v1::Job& job : jobs) {
    if (!HasArtifacts(job)) continue;
    StrAppend(&out, "\nFiles of ", Printable(job.name()), " (", Printable(job.id()), ")\n");
    if (!job.artifacts().safetensors().empty()) {
      StrAppend(&out, "  weights  ", Printable(job.artifacts().safetensors()), " (",
                FormatBytes(job.artifacts().safetensors_bytes()), ")\n");
    }
    if (!job.artifacts().torchscript().empty()) {
      StrAppend(&out, "  program  ", Printable(job.artifacts().torchscript()), " (",
                FormatBytes(job.artifacts().torchscript_bytes()), ")\n");
    }
  }
  return out;
}

std::string ResultsJson(const std::vector<v1::Job>& jobs) {
  using nlohmann::ordered_json;
  const auto measured = [](double value) {
    return std::isfinite(value) && value >= 0 ? ordered_json(value) : ordered_json(nullptr);
  };
  ordered_json results = ordered_json::array();
  for (const v1::Job& job : jobs) {
    const bool files = HasArtifacts(job);
    const v1::Artifacts& artifacts = job.artifacts();
    const auto known = [&](auto value) { return files && value > 0 ? ordered_json(value) : ordered_json(nullptr); };
    const auto path = [&](const std::string& value) {
      return value.empty() ? ordered_json(nullptr) : ordered_json(value);
    };
    ordered_json entry;
    entry["job"] = job.id();
    entry["name"] = job.name();
    entry["state"] = v1::JobState_Name(job.state());
    entry["seed"] = job.plan().seed();
    entry["student"] = job.plan().student().arch();
    entry["teacher"] =
        job.plan().teachers().empty() ? ordered_json(nullptr) : ordered_json(job.plan().teachers(0).model());
    const auto metrics = [&](const v1::Score& score) {
      ordered_json values = nullptr;
      for (const v1::NamedValue& metric : score.metrics()) values[metric.name()] = measured(metric.value());
      return values;
    };
    entry["student_score"] = metrics(StudentScore(job));
    entry["teacher_score"] = metrics(TeacherScore(job));
    entry["student_parameters"] = known(artifacts.student_parameters());
    entry["teacher_parameters"] = known(artifacts.teacher_parameters());
    entry["student_bytes"] = known(artifacts.safetensors_bytes());
    entry["torchscript_bytes"] = known(artifacts.torchscript_bytes());
    entry["teacher_bytes"] = known(artifacts.teacher_bytes());
    entry["wall_seconds"] = measured(WallSeconds(job));
    entry["skipped_steps"] = SkippedSteps(job);
    entry["safetensors"] = path(artifacts.safetensors());
    entry["torchscript"] = path(artifacts.torchscript());
    results.push_back(std::move(entry));
  }
  return ordered_json{{"results", results}}.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string RenderHistory(const v1::Job& job, const v1::GetHistoryResponse& history, size_t limit,
                          const TextOptions& options) {
  if (history.points().empty()) return "no progress points yet\n";
  Table table({Left("STAGE"), Right("STEP"), Right("TOTAL"), Right("LOSS"), Right("LEARNING RATE"), Right("IMAGES/S"),
               Right("SCORE"), Right("TIME")});
  for (int i = FirstPoint(history, limit); i < history.points_size(); ++i) {
    const v1::Progress& point = history.points(i);
    table.AddRow({{StageName(job, point.stage())},
                  {StrCat(point.step())},
                  {StrCat(point.total_step())},
                  {FormatNumber(point.loss())},
                  {FormatNumber(point.learning_rate())},
                  {FormatRate(point.images_per_second())},
                  {FormatHeadline(point.score())},
                  {job.started_time() > 0 ? FormatDuration(std::max(0.0, point.time() - job.started_time())) : "-"}});
  }
  return table.Render(options);
}

std::string HistoryCsv(const v1::Job& job, const v1::GetHistoryResponse& history, size_t limit) {
  std::vector<std::string> metrics, teacher_metrics, terms, seconds;  // in order of first appearance
  const auto collect = [](const auto& values, std::vector<std::string>& names) {
    for (const v1::NamedValue& value : values) {
      if (std::find(names.begin(), names.end(), value.name()) == names.end()) names.push_back(value.name());
    }
  };
  const int first = FirstPoint(history, limit);
  for (int i = first; i < history.points_size(); ++i) {
    collect(history.points(i).score().metrics(), metrics);
    collect(history.points(i).teacher_score().metrics(), teacher_metrics);
    collect(history.points(i).terms(), terms);
    collect(history.points(i).step_seconds(), seconds);
  }
  std::string out = "stage,stage_name,step,total_step,loss,learning_rate,images_per_second,time,phase";
  for (const std::string& name : metrics) StrAppend(&out, ",", CsvCell("student_" + name));
  for (const std::string& name : teacher_metrics) StrAppend(&out, ",", CsvCell("teacher_" + name));
  for (const std::string& name : terms) StrAppend(&out, ",", CsvCell("term_" + name));
  for (const std::string& name : seconds) StrAppend(&out, ",", CsvCell("seconds_" + name));
  out += "\n";
  for (int i = first; i < history.points_size(); ++i) {
    const v1::Progress& point = history.points(i);
    StrAppend(&out, point.stage(), ",", CsvCell(StageName(job, point.stage())), ",", point.step(), ",",
              point.total_step(), ",", CsvNumber(point.loss()), ",", CsvNumber(point.learning_rate()), ",",
              CsvNumber(point.images_per_second()), ",", absl::StrFormat("%.3f", point.time()), ",",
              CsvCell(point.phase()));
    const auto append = [&](const auto& values, const std::vector<std::string>& names) {
      for (const std::string& name : names) {
        const v1::NamedValue* value = FindValue(values, name);
        StrAppend(&out, ",", value == nullptr ? "" : CsvNumber(value->value()));
      }
    };
    append(point.score().metrics(), metrics);
    append(point.teacher_score().metrics(), teacher_metrics);
    append(point.terms(), terms);
    append(point.step_seconds(), seconds);
    out += "\n";
  }
  return out;
}

}  // namespace distill::cli
