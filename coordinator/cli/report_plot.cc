#include "coordinator/cli/report_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/str_cat.h"
#include "coordinator/cli/text.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

constexpr double kWidth = 760, kHeight = 260;
constexpr double kLeft = 62, kRight = 14, kTop = 22, kBottom = 38;
// Rough width of a letter at the style sheet's size.
constexpr double kLetter = 6.6;

std::string Coordinate(double value) { return absl::StrFormat("%.1f", value); }

// About `wanted` round numbers from low to high.
std::vector<double> LinearTicks(double low, double high, double wanted) {
  const double raw = (high - low) / std::max(1.0, wanted);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double m : {5, 2, 1}) {
    if (m * power >= raw) step = m * power;
  }
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i)
    ticks.push_back(i * step + 0.0);  // not -0
  return ticks;
}

std::vector<double> LogTicks(double low, double high) {
  const double decades = std::log10(high / low);
  std::vector<double> factors = {1};
  if (decades <= 3) factors = {1, 3};
  if (decades <= 1.2) factors = {1, 2, 3, 5, 7};
  std::vector<double> ticks;
  for (double p = std::floor(std::log10(low)); p <= std::ceil(std::log10(high)); ++p) {
    for (const double factor : factors) {
      const double tick = factor * std::pow(10, p);
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push_back(tick);
    }
  }
  return ticks;
}

// From data to picture.
struct Frame {
  double x0 = 0, x1 = 1, low = 0, high = 1;
  bool log = false;
  double X(double x) const { return kLeft + (x - x0) / (x1 - x0) * (kWidth - kLeft - kRight); }
  double Y(double y) const {
    const double share = log ? std::log(y / low) / std::log(high / low) : (y - low) / (high - low);
    return kTop + (kHeight - kTop - kBottom) * (1 - share);
  }
  bool Shows(double y) const { return std::isfinite(y) && (!log || y > 0); }
};

// False when there is nothing to draw.
bool FitFrame(const std::vector<PlotSeries>& series, const PlotOptions& options, Frame* frame) {
  frame->log = options.log;
  double x0 = 0, x1 = 0;
  double y0 = std::numeric_limits<double>::infinity(), y1 = -y0;
  for (const PlotSeries& one : series) {
    for (const PlotPoint& point : one.points) {
      if (!frame->Shows(point.y)) continue;
      x1 = std::max(x1, point.x);
      y0 = std::min(y0, point.y);
      y1 = std::max(y1, point.y);
    }
  }
  if (y0 > y1) return false;
  if (x1 <= x0) x1 = x0 + 1;
  if ((options.from_zero || options.stacked) && !options.log) y0 = std::min(0.0, y0);
  if (y1 <= y0) {
    const double room = (y0 == 0 ? 1 : std::abs(y0)) * 0.1;
    y0 = options.log ? y0 / 2 : y0 - room;
    y1 = options.log ? y1 * 2 : y1 + room;
  }
  const double pad = (y1 - y0) * 0.04;
  frame->x0 = x0;
  frame->x1 = x1;
  frame->low = options.log ? y0 * 0.9 : y0 == 0 ? 0 : y0 - pad;
  frame->high = options.log ? y1 * 1.1 : y1 + pad;
  return true;
}

// Each series on top of those before it; `base` gets the lower edges.
std::vector<PlotSeries> Stack(std::vector<PlotSeries> series, std::vector<std::vector<double>>* base) {
  std::map<double, double> sums;
  for (PlotSeries& one : series) {
    std::vector<double>& lower = base->emplace_back();
    for (PlotPoint& point : one.points) {
      double& sum = sums[point.x];
      lower.push_back(sum);
      if (std::isfinite(point.y)) sum += point.y;
      point.y = sum;
    }
  }
  return series;
}

std::string AxesSvg(const Frame& frame, const PlotOptions& options) {
  const double right = kWidth - kRight, bottom = kHeight - kBottom;
  std::string out;
  for (const double y : frame.log ? LogTicks(frame.low, frame.high) : LinearTicks(frame.low, frame.high, 5)) {
    StrAppend(&out, "<line class=\"grid\" x1=\"", Coordinate(kLeft), "\" x2=\"", Coordinate(right), "\" y1=\"",
              Coordinate(frame.Y(y)), "\" y2=\"", Coordinate(frame.Y(y)), "\"/><text x=\"", Coordinate(kLeft - 6),
              "\" y=\"", Coordinate(frame.Y(y) + 4), "\" text-anchor=\"end\">", FormatNumber(y), "</text>\n");
  }
  for (const double x : LinearTicks(frame.x0, frame.x1, 8)) {
    StrAppend(&out, "<text x=\"", Coordinate(frame.X(x)), "\" y=\"", Coordinate(bottom + 16),
              "\" text-anchor=\"middle\">", absl::StrFormat("%.10g", x), "</text>\n");
  }
  StrAppend(&out, "<line class=\"axis\" x1=\"", Coordinate(kLeft), "\" x2=\"", Coordinate(right), "\" y1=\"",
            Coordinate(bottom), "\" y2=\"", Coordinate(bottom), "\"/><text x=\"", Coordinate(right), "\" y=\"",
            Coordinate(kHeight - 5), "\" text-anchor=\"end\">step</text>\n");
  if (!options.unit.empty()) StrAppend(&out, "<text x=\"2\" y=\"12\">", EscapeHtml(options.unit), "</text>\n");
  return out;
}

std::string MarksSvg(const Frame& frame, const std::vector<PlotMark>& marks) {
  std::string out;
  double text_end = 0;
  for (const PlotMark& mark : marks) {
    if (mark.x < frame.x0 || mark.x > frame.x1) continue;
    const double x = frame.X(mark.x);
    StrAppend(&out, "<line class=\"", mark.restart ? "restart" : "mark", "\" x1=\"", Coordinate(x), "\" x2=\"",
              Coordinate(x), "\" y1=\"", Coordinate(kTop), "\" y2=\"", Coordinate(kHeight - kBottom), "\"><title>",
              EscapeHtml(mark.text), "</title></line>\n");
    // A text that would run into the one before or over the edge is left out.
    const double size = DisplayWidth(Printable(mark.text)) * kLetter;
    if (x + 3 < text_end || x + 3 + size > kWidth - kRight) continue;
    StrAppend(&out, "<text class=\"", mark.restart ? "restart-text" : "mark-text", "\" x=\"", Coordinate(x + 3),
              "\" y=\"", Coordinate(kTop - 6), "\">", EscapeHtml(mark.text), "</text>\n");
    text_end = x + 9 + size;
  }
  return out;
}

std::string LineSvg(const PlotSeries& series, const Frame& frame) {
  std::string path;
  bool pen = false;
  int part = 0;
  for (const PlotPoint& point : series.points) {
    if (!frame.Shows(point.y)) {
      pen = false;
      continue;
    }
    StrAppend(&path, pen && point.part == part ? "L" : "M", Coordinate(frame.X(point.x)), " ",
              Coordinate(frame.Y(point.y)));
    pen = true;
    part = point.part;
  }
  std::string out =
      StrCat("<path class=\"curve k", series.color, series.dashed ? " dashed" : "", "\" d=\"", path, "\"/>\n");
  if (!series.dots && series.points.size() > 1) return out;
  for (const PlotPoint& point : series.points) {
    if (!frame.Shows(point.y)) continue;
    StrAppend(&out, "<circle class=\"dot k", series.color, "\" cx=\"", Coordinate(frame.X(point.x)), "\" cy=\"",
              Coordinate(frame.Y(point.y)), "\" r=\"3.5\"><title>", EscapeHtml(series.name), " ", FormatNumber(point.y),
              " at step ", absl::StrFormat("%.10g", point.x), "</title></circle>\n");
  }
  return out;
}

std::string AreaSvg(const PlotSeries& series, const std::vector<double>& base, const Frame& frame) {
  std::string points;
  for (const PlotPoint& point : series.points) {
    StrAppend(&points, Coordinate(frame.X(point.x)), ",", Coordinate(frame.Y(point.y)), " ");
  }
  for (size_t i = series.points.size(); i-- > 0;) {
    StrAppend(&points, Coordinate(frame.X(series.points[i].x)), ",", Coordinate(frame.Y(base[i])), " ");
  }
  return StrCat("<polygon class=\"area k", series.color, "\" points=\"", points, "\"/>\n");
}

std::string Legend(const std::vector<PlotSeries>& series) {
  std::string out = "<figcaption>";
  for (const PlotSeries& one : series) {
    StrAppend(&out, "<span class=\"k", one.color, "\"><span class=\"swatch\"></span>", EscapeHtml(one.name));
    if (!one.points.empty()) StrAppend(&out, " <b>", FormatNumber(one.points.back().y), "</b>");
    out += "</span> ";
  }
  return out + "</figcaption>";
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : Printable(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string RenderPlot(const std::vector<PlotSeries>& series, const std::vector<PlotMark>& marks,
                       const PlotOptions& options) {
  std::vector<std::vector<double>> base;
  const std::vector<PlotSeries> drawn = options.stacked ? Stack(series, &base) : series;
  Frame frame;
  if (!FitFrame(drawn, options, &frame)) return "<p class=\"muted\">Nothing was reported.</p>\n";
  std::string out = StrCat("<figure>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", kWidth, " ", kHeight,
                           "\" role=\"img\" aria-label=\"", EscapeHtml(options.name), "\">\n");
  out += AxesSvg(frame, options);
  for (size_t i = 0; i < drawn.size(); ++i) {
    out += options.stacked ? AreaSvg(drawn[i], base[i], frame) : LineSvg(drawn[i], frame);
  }
  out += MarksSvg(frame, marks);
  StrAppend(&out, "</svg>\n", Legend(series), "\n</figure>\n");
  return out;
}

std::string RenderTimeline(const std::vector<TimelineRow>& rows, const std::vector<TimelineGap>& gaps, double from,
                           double to) {
  constexpr double kRow = 36, kHead = 22;
  const double bottom = kHead + kRow * static_cast<double>(rows.size()), height = bottom + 24;
  to = std::max(to, from + 1e-3);
  const auto x = [&](double time) { return 1 + std::clamp((time - from) / (to - from), 0.0, 1.0) * (kWidth - 2); };
  std::string out = StrCat("<figure>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", kWidth, " ", height,
                           "\" role=\"img\" aria-label=\"Timeline of the stages\">\n");
  for (const TimelineGap& gap : gaps) {
    StrAppend(&out, "<rect class=\"gap\" x=\"", Coordinate(x(gap.lost)), "\" y=\"", Coordinate(kHead), "\" width=\"",
              Coordinate(std::max(1.0, x(gap.formed) - x(gap.lost))), "\" height=\"", Coordinate(bottom - kHead),
              "\"/>");
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const TimelineRow& row = rows[i];
    const double y = kHead + kRow * static_cast<double>(i);
    StrAppend(&out, "<text class=\"label\" x=\"1\" y=\"", Coordinate(y + 13), "\">", EscapeHtml(row.label),
              "</text><rect class=\"ground\" x=\"1\" y=\"", Coordinate(y + 18), "\" width=\"", Coordinate(kWidth - 2),
              "\" height=\"12\" rx=\"3\"/>\n");
    if (row.kind.empty()) continue;
    StrAppend(&out, "<rect class=\"", row.kind, "\" x=\"", Coordinate(x(row.from)), "\" y=\"", Coordinate(y + 18),
              "\" width=\"", Coordinate(std::max(2.0, x(row.to) - x(row.from))), "\" height=\"12\" rx=\"3\"/>\n");
  }
  double text_end = 0;
  for (const TimelineGap& gap : gaps) {
    for (const double time : {gap.lost, gap.formed}) {
      StrAppend(&out, "<line class=\"restart\" x1=\"", Coordinate(x(time)), "\" x2=\"", Coordinate(x(time)), "\" y1=\"",
                Coordinate(kHead - 4), "\" y2=\"", Coordinate(bottom), "\"/>");
    }
    const double size = DisplayWidth(Printable(gap.text)) * kLetter;
    const double left = std::min(x(gap.formed), kWidth - size);
    if (left >= text_end) {
      StrAppend(&out, "<text class=\"restart-text\" x=\"", Coordinate(left), "\" y=\"12\">", EscapeHtml(gap.text),
                "</text>\n");
      text_end = left + size + 6;
    }
  }
  constexpr int kMarks = 5;
  for (int i = 0; i <= kMarks; ++i) {
    const double time = from + (to - from) * i / kMarks;
    StrAppend(&out, "<text x=\"", Coordinate(x(time)), "\" y=\"", Coordinate(height - 6), "\" text-anchor=\"",
              i == 0        ? "start"
              : i == kMarks ? "end"
                            : "middle",
              "\">", FormatDuration(time - from), "</text>");
  }
  return out + "\n</svg>\n</figure>\n";
}

}  // namespace distill::cli
