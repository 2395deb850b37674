#include "coordinator/cli/report_curves.h"

#include <algorithm>
#include <functional>
#include <map>

#include "common/score/score.h"
#include "common/str_cat.h"
#include "coordinator/cli/job_progress.h"

namespace distill::cli {
namespace {

using Points = std::map<uint64_t, const v1::Progress*>;

constexpr int kColors = 8;

// Reports by step; the newest of a step wins.
Points BySteps(const v1::GetHistoryResponse& history, const std::function<bool(const v1::Progress&)>& wanted) {
  Points points;
  for (const v1::Progress& point : history.points()) {
    if (wanted(point)) points[point.total_step()] = &point;
  }
  return points;
}

// Names in order of their first appearance.
template <typename Values>
void Collect(const Values& values, std::vector<std::string>* names) {
  for (const v1::NamedValue& value : values) {
    if (std::find(names->begin(), names->end(), value.name()) == names->end()) names->push_back(value.name());
  }
}

template <typename Values>
const v1::NamedValue* Find(const Values& values, const std::string& name) {
  for (const v1::NamedValue& value : values) {
    if (value.name() == name) return &value;
  }
  return nullptr;
}

bool IsTimed(const v1::Progress& point) { return !point.step_seconds().empty(); }

}  // namespace

std::vector<RankGroup> GroupsOf(const std::vector<v1::JobEvent>& events) {
  std::vector<RankGroup> groups;
  for (const v1::JobEvent& event : events) {
    if (event.type() == v1::EVENT_TYPE_GROUP_FORMED) {
      groups.push_back({event.generation(), event.time(), std::nullopt});
    } else if (event.type() == v1::EVENT_TYPE_GROUP_LOST && !groups.empty()) {
      groups.back().lost = event.time();
    }
  }
  return groups;
}

std::vector<PlotSeries> LossSeries(const v1::GetHistoryResponse& history) {
  const Points points =
      BySteps(history, [](const v1::Progress& point) { return point.step() > 0 && !point.terms().empty(); });
  if (points.empty()) return {};
  std::vector<std::string> names;
  for (const auto& [step, point] : points) Collect(point->terms(), &names);
  std::vector<PlotSeries> series = {{.name = "loss (weighted sum)", .color = 0}};
  for (size_t i = 0; i < names.size(); ++i) {
    series.push_back({.name = names[i], .color = 1 + static_cast<int>(i % (kColors - 1))});
  }
  for (const auto& [step, point] : points) {
    const double x = static_cast<double>(step);
    series[0].points.push_back({x, point->loss(), static_cast<int>(point->stage())});
    for (size_t i = 0; i < names.size(); ++i) {
      if (const v1::NamedValue* term = Find(point->terms(), names[i])) {
        series[i + 1].points.push_back({x, term->value(), static_cast<int>(point->stage())});
      }
    }
  }
  return series;
}

std::vector<PlotSeries> ScoreSeries(const v1::Job& job, const v1::GetHistoryResponse& history) {
  std::map<uint64_t, const v1::Score*> found;
  std::string before;
  for (const v1::Progress& point : history.points()) {
    const std::string now = point.score().SerializeAsString();
    if (!now.empty() && now != before) found[point.total_step()] = &point.score();
    before = now;
  }
  // What the stages' ends say is exact, also where reports were thinned out.
  uint64_t end = 0;
  for (int i = 0; i < job.plan().stages_size(); ++i) {
    end += job.plan().stages(i).steps();
    const v1::StageResult* const result = ResultOf(job, i);
    if (result != nullptr && !result->score().metrics().empty()) found[end] = &result->score();
  }
  const v1::Score& teacher = TeacherScore(job);
  const double last = static_cast<double>(std::max<uint64_t>(1, PositionOf(job).done_steps));
  std::vector<std::string> names;
  for (const auto& [step, score] : found) Collect(score->metrics(), &names);
  Collect(teacher.metrics(), &names);
  std::vector<PlotSeries> series;
  for (const std::string& name : names) {
    const int color = static_cast<int>(series.size()) % kColors;
    const std::string label = MetricLabel(name);
    PlotSeries student{.name = "student " + label, .color = color, .dots = true};
    for (const auto& [step, score] : found) {
      if (const v1::NamedValue* metric = Find(score->metrics(), name)) {
        student.points.push_back({static_cast<double>(step), metric->value() * 100, 0});
      }
    }
    if (!student.points.empty()) series.push_back(std::move(student));
    if (const v1::NamedValue* metric = Find(teacher.metrics(), name)) {
      const double percent = metric->value() * 100;
      series.push_back({.name = "teacher " + label,
                        .color = (color + 1) % kColors,
                        .dashed = true,
                        .points = {{0, percent, 0}, {last, percent, 0}}});
    }
  }
  return series;
}

std::vector<PlotSeries> StepPartSeries(const v1::GetHistoryResponse& history) {
  const Points points = BySteps(history, IsTimed);
  std::vector<std::string> names;
  for (const auto& [step, point] : points) Collect(point->step_seconds(), &names);
  std::vector<PlotSeries> series;
  for (size_t i = 0; i < names.size(); ++i) {
    series.push_back({.name = names[i], .color = static_cast<int>(i % kColors)});
    for (const auto& [step, point] : points) {
      const v1::NamedValue* const part = Find(point->step_seconds(), names[i]);
      series[i].points.push_back({static_cast<double>(step), part == nullptr ? 0 : part->value() * 1000, 0});
    }
  }
  return series;
}

std::vector<PlotSeries> SpeedSeries(const v1::GetHistoryResponse& history) {
  const Points points = BySteps(history, IsTimed);
  if (points.empty()) return {};
  PlotSeries series{.name = "all ranks", .color = 2};
  for (const auto& [step, point] : points) {
    series.points.push_back({static_cast<double>(step), point->images_per_second(), static_cast<int>(point->stage())});
  }
  return {series};
}

std::vector<PlotMark> StageMarks(const v1::JobPlan& plan) {
  std::vector<PlotMark> marks;
  uint64_t start = 0;
  for (const v1::StagePlan& stage : plan.stages()) {
    marks.push_back({static_cast<double>(start), stage.name(), false});
    start += stage.steps();
  }
  return marks;
}

std::vector<PlotMark> RestartMarks(const v1::GetHistoryResponse& history, const std::vector<RankGroup>& groups) {
  std::vector<PlotMark> marks;
  for (size_t i = 1; i < groups.size(); ++i) {
    for (const v1::Progress& point : history.points()) {
      if (point.time() < groups[i].formed || point.total_step() == 0) continue;
      marks.push_back(
          {static_cast<double>(point.total_step()), StrCat("generation ", groups[i].generation), /*restart=*/true});
      break;
    }
  }
  return marks;
}

}  // namespace distill::cli
