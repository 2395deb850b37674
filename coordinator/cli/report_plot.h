// Plots as SVG inside HTML: no script, colours by the classes of the report's style sheet. Pure functions.
#ifndef DISTILL_COORDINATOR_CLI_REPORT_PLOT_H_
#define DISTILL_COORDINATOR_CLI_REPORT_PLOT_H_

#include <string>
#include <string_view>
#include <vector>

namespace distill::cli {

struct PlotPoint {
  double x = 0, y = 0;
  int part = 0;  // a line breaks where this changes
};
struct PlotSeries {
  std::string name;
  int color = 0;  // 0 to 7
  bool dashed = false;
  bool dots = false;
  std::vector<PlotPoint> points;  // x ascends
};
// A vertical line with its text.
struct PlotMark {
  double x = 0;
  std::string text;
  bool restart = false;
};
struct PlotOptions {
  std::string name;        // of the whole, for those who do not see it
  std::string unit;        // of the values; may be empty
  bool log = false;        // logarithmic; values that are not positive are left out
  bool from_zero = false;  // the axis begins at 0
  bool stacked = false;    // areas that add up; all series have the same xs
};

// A <figure> with the plot and its legend; a paragraph that says so when there is nothing to draw. Values that are not
// finite interrupt their line.
std::string RenderPlot(const std::vector<PlotSeries>& series, const std::vector<PlotMark>& marks,
                       const PlotOptions& options);

// One row of a timeline: bars between times in seconds.
struct TimelineRow {
  std::string label;
  double from = 0, to = 0;
  std::string kind;  // class of the bar: "done", "now", "wait", "stopped"; "" for none
};
// Between `lost` and `formed` nobody worked; the text stands where work went on.
struct TimelineGap {
  double lost = 0, formed = 0;
  std::string text;
};
std::string RenderTimeline(const std::vector<TimelineRow>& rows, const std::vector<TimelineGap>& gaps, double from,
                           double to);

// For HTML text and attributes: printable (text.h), with &, <, >, " and ' as entities.
std::string EscapeHtml(std::string_view text);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_REPORT_PLOT_H_
