// The report's style sheet. The colours of curves are those of the status page (coordinator/web/assets/style.css).
#ifndef DISTILL_COORDINATOR_CLI_REPORT_STYLE_H_
#define DISTILL_COORDINATOR_CLI_REPORT_STYLE_H_

namespace distill::cli {

inline constexpr char kReportStyle[] = R"css(
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1b2430; --muted: #566373; --line: #d9dfe6;
  --grid: #e6eaef;
  --accent: #0b5c8c; --good: #1b7a43; --bad: #b3261e; --wait: #7a5300;
  --c0: #0072b2; --c1: #d55e00; --c2: #00815f; --c3: #b04f8a; --c4: #a07800; --c5: #3d94c4; --c6: #5c4a9e;
    --c7: #6b7480; }
@media (prefers-color-scheme: dark) { :root { --ground: #12171d; --card: #1a2129; --ink: #e4e9ef; --muted: #9aa7b5;
  --line: #313b46;
  --grid: #28313b; --accent: #6fb7e6; --good: #6fd498; --bad: #ff9a91; --wait: #f0c765;
  --c0: #56b4e9; --c1: #f0893a; --c2: #35c09a; --c3: #dc92bf; --c4: #e6c34a; --c5: #9bd3f5; --c6: #aa9be8;
    --c7: #a4afbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem;
  margin: 0 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
h3 { font-size: .95rem; margin: .9rem 0 .3rem; }
p { margin: 0 0 .4rem; overflow-wrap: anywhere; }
.muted { color: var(--muted); }
.state { font-weight: 700; }
.succeeded { color: var(--good); } .failed, .error td { color: var(--bad); }
  .queued, .cancelled, .warning td { color: var(--wait); }
.running { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: var(--muted); font-size: .8rem; white-space: nowrap; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
.r { text-align: right; }
.n { white-space: nowrap; }
.t { min-width: 14rem; overflow-wrap: anywhere; }
code, pre { font: .85em/1.4 ui-monospace, monospace; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; margin: 0; }
summary { cursor: pointer; color: var(--accent); }
figure { margin: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .87rem; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: .75rem; height: .75rem; border-radius: 3px; background: var(--k);
  margin-right: .35rem; vertical-align: -.05rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--muted); font: 12px system-ui, sans-serif; }
svg .label { fill: var(--ink); }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--line); }
svg .mark { stroke: var(--muted); stroke-dasharray: 3 3; }
svg .restart { stroke: var(--bad); stroke-dasharray: 4 2; stroke-width: 1.5; } svg .restart-text { fill: var(--bad);
  font-weight: 600; }
svg .ground { fill: var(--grid); } svg .done { fill: var(--c2); } svg .now { fill: var(--c0); }
  svg .wait { fill: var(--c4); }
svg .stopped { fill: var(--c1); } svg .gap { fill: var(--c1); fill-opacity: .25; }
svg .curve { fill: none; stroke: var(--k); stroke-width: 1.8; stroke-linejoin: round; }
  svg .dashed { stroke-dasharray: 6 4; }
svg .area { fill: var(--k); fill-opacity: .85; } svg .dot { fill: var(--k); }
.k0 { --k: var(--c0); } .k1 { --k: var(--c1); } .k2 { --k: var(--c2); } .k3 { --k: var(--c3); }
.k4 { --k: var(--c4); } .k5 { --k: var(--c5); } .k6 { --k: var(--c6); } .k7 { --k: var(--c7); }
.matrix td, .matrix th { padding: .15rem .45rem; } .matrix td { --shade: var(--c0); }
.s1 { background: color-mix(in srgb, var(--shade) 10%, transparent); }
.s2 { background: color-mix(in srgb, var(--shade) 20%, transparent); }
.s3 { background: color-mix(in srgb, var(--shade) 30%, transparent); }
.s4 { background: color-mix(in srgb, var(--shade) 40%, transparent); }
.s5 { background: color-mix(in srgb, var(--shade) 50%, transparent); }
@media print { body { max-width: none; } section, header { break-inside: avoid-page; } }
)css";

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_REPORT_STYLE_H_
