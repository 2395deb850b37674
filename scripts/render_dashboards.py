"""Draws dashboards from a Prometheus. Run by render_dashboards.sh, which says how."""
import argparse
import io
import json
import math
import pathlib
import re
import textwrap
import time
import urllib.parse
import urllib.request

import matplotlib
matplotlib.use("Agg")
import matplotlib.dates
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LinearLocator
from PIL import Image

DASHBOARDS = pathlib.Path(__file__).resolve().parent.parent / "deploy/grafana/dashboards"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ROW_INCHES, COLUMN_INCHES = 0.3, 0.58  # of Grafana's grid


def duration(text):
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found: raise argparse.ArgumentTypeError(f"'{text}' is no duration: 30s, 15m, 2h, 1d")
    return int(found[1]) * SECONDS[found[2]]


def short(value, unit):
    """A number with its unit, as Grafana would show it."""
    if value is None or math.isnan(value): return "no value"
    if unit == "percentunit": return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        power = min(4, int(math.log(abs(value), 1024))) if abs(value) >= 1 else 0
        return f"{value / 1024 ** power:.3g} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}{'/s' if unit == 'Bps' else ''}"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size: return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value else "0 s"
    if unit == "ops": return f"{value:.3g}/s"
    if abs(value) >= 1e4: return f"{value / 1e3:.3g} k"
    return f"{value:.3g}"


class Source:
    def __init__(self, url, start, end, step):
        self.url, self.start, self.end, self.step = url.rstrip("/"), start, end, step

    def ask(self, target):
        interval = f"{max(4 * self.step, 10):.0f}s"
        expr = target["expr"]
        for name, value in (("$__rate_interval", interval), ("$__range", f"{self.end - self.start:.0f}s"), ("$instance", ".+"), ("$job", ".+")):
            expr = expr.replace(name, value)
        parameters = {"query": expr, "start": self.start, "end": self.end, "step": self.step}
        with urllib.request.urlopen(f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            for series in json.load(answer)["data"]["result"]:
                legend = re.sub(r"\{\{(\w+)\}\}", lambda m: series["metric"].get(m[1], ""), target["legendFormat"])
                yield legend, [float(t) for t, _ in series["values"]], [float(v) for _, v in series["values"]]


def draw_lines(axes, panel, series, unit):
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    if stacked and series:
        times = sorted({t for _, ts, _ in series for t in ts})
        rows = [[dict(zip(ts, vs)).get(t, 0) for t in times] for _, ts, vs in series]
        rows = [[0 if math.isnan(v) else v for v in row] for row in rows]
        axes.stackplot([t / 86400 for t in times], rows,
                       labels=[name for name, _, _ in series], alpha=0.75)
    else:
        for name, ts, vs in series: axes.plot([t / 86400 for t in ts], vs, label=name, linewidth=1)
    axes.xaxis_date()
    axes.xaxis.set_major_locator(LinearLocator(4))
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M" if series and series[0][1][-1] - series[0][1][0] > 600 else "%H:%M:%S"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v, unit)))
    # Room for the legend.
    axes.set_ylim(bottom=0, top=panel["fieldConfig"]["defaults"].get("max") or 1.2 * axes.get_ylim()[1])
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    if series: axes.legend(fontsize=5.5, loc="upper left", ncol=2, framealpha=0.6)


def bound(le): return math.inf if le == "+Inf" else float(le)


def draw_heatmap(axes, series, unit):
    series = sorted(series, key=lambda s: bound(s[0]))
    times = sorted({t for _, ts, _ in series for t in ts})
    cumulative = [[dict(zip(ts, vs)).get(t, 0) for t in times] for _, ts, vs in series]
    rows = [[max(0, v - below) for v, below in zip(row, [0] * len(times) if i == 0 else cumulative[i - 1])] for i, row in enumerate(cumulative)]
    used = [i for i, row in enumerate(rows) if any(row)]
    if not used: return draw_text(axes, "no data")
    low, high = used[0], used[-1] + 1
    axes.pcolormesh([t / 86400 for t in times], range(low, high), rows[low:high], cmap="Blues", shading="nearest")
    axes.set_yticks(range(low, high), [f"≤ {short(bound(series[i][0]), unit)}" if series[i][0] != "+Inf" else "more" for i in range(low, high)])
    axes.xaxis_date()
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M:%S"))
    axes.xaxis.set_major_locator(LinearLocator(4))
    axes.tick_params(labelsize=6)


def draw_text(axes, text, size=7):
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=size, transform=axes.transAxes)


def draw(board, source, path):
    columns = 24
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    figure = plt.figure(figsize=(columns * COLUMN_INCHES, rows * ROW_INCHES + 0.4))
    figure.text(0.01, 1 - 0.2 / figure.get_figheight(), board["title"], fontsize=11, weight="bold", va="center")
    height = rows * ROW_INCHES / figure.get_figheight()
    for panel in board["panels"]:
        grid, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
        left, width = grid["x"] / columns, grid["w"] / columns
        top, tall = height * (1 - grid["y"] / rows), height * grid["h"] / rows
        axes = figure.add_axes([left + 0.045, top - tall + 0.022, width - 0.055, tall - 0.05] if panel["type"] in ("timeseries", "heatmap")
                               else [left + 0.005, top - tall, width - 0.01, tall * 0.75])
        series = [s for target in panel["targets"] for s in source.ask(target)]
        axes.set_title(panel["title"], fontsize=7.5, loc="left", weight="bold", pad=3)
        if panel["type"] == "timeseries": draw_lines(axes, panel, series, unit)
        elif panel["type"] == "heatmap": draw_heatmap(axes, series, unit)
        elif panel["type"] == "stat": draw_text(axes, short(series[0][2][-1], unit) if series else "no value", 15)
        else: draw_text(axes, "\n".join(f"{textwrap.shorten(name, 50)}: {short(values[-1], unit)}" for name, _, values in series) or "no data")
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=80)
    plt.close(figure)
    # A palette makes the files a third as big, and plots look the same.
    Image.open(pixels).convert("RGB").quantize(64).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--last", type=duration, default=3600)
    parser.add_argument("--end", type=float, default=time.time())
    parser.add_argument("url")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("dashboards", nargs="*", default=["fleet", "job", "teacher", "wire", "step"])
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True, exist_ok=True)
    source = Source(flags.url, flags.end - flags.last, flags.end, max(1, flags.last / 200))
    for name in flags.dashboards:
        path = flags.folder / f"{name}.png"
        draw(json.loads((DASHBOARDS / f"{name}.json").read_text()), source, path)
        print(path)


if __name__ == "__main__":
    main()
