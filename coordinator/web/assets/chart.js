// Curves as SVG: axes with units, several series, values under the pointer or the arrow keys, a logarithmic scale on
// request. Times and losses only; the page decides what is drawn.
import {element, svg} from './format.js';

const HEIGHT = 230;
const MARGIN = {
  left: 56,
  right: 12,
  top: 18,
  bottom: 34
};

// About `wanted` round numbers that cover low to high.
function linearTicks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  const decades = Math.log10(high / low);
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); ++p) {
    for (const m of decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 3, 5, 7]) {
      const tick = m * 10 ** p;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

// The index of the last point at or before x; -1 when there is none.
function lastAt(points, x) {
  let low = 0;
  let high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].x <= x)
      low = middle + 1;
    else
      high = middle;
  }
  return low - 1;
}

export class Chart {
  // options: name (of the whole), format (value to text), unit (of the values, may be ""), stacked (areas that add up),
  // logToggle, fromZero (the axis begins at 0), empty (what to say when there is nothing to draw).
  constructor(box, options) {
    this.box = box;
    this.options = options;
    this.hidden = new Set();
    this.log = false;
    this.cursor = null;
    this.data = {series: [], marks: []};
    this.tools = element('div', {class: 'tools', role: 'group', 'aria-label': `Curves of ${options.name}`});
    this.plot = element('div', {});
    this.tip = element('div', {class: 'tip', role: 'status'});
    this.tip.hidden = true;
    box.replaceChildren(this.tools, this.plot, this.tip);
    new ResizeObserver(() => {
      if (box.clientWidth !== this.width) this.draw();
    }).observe(box);
  }

  // series: [{name, points: [{x, y, part}], k, dashed, dots}], x ascending; a line breaks where `part` changes. k:
  // colour, 0 to 7. marks: [{x, text}], vertical lines.
  update(series, marks = []) {
    const key = JSON.stringify([series, marks]);
    if (key === this.key) return;
    this.key = key;
    this.data = {series, marks};
    this.draw();
  }

  draw() {
    this.width = this.box.clientWidth;
    if (this.width === 0) return;
    this.drawTools();
    const {series, marks} = this.data;
    let visible = series.filter((s) => !this.hidden.has(s.name));
    if (this.options.stacked) visible = stack(visible);
    const usable = (y) => Number.isFinite(y) && (!this.log || y > 0);
    const all = visible.flatMap((s) => s.points).filter((p) => usable(p.y));
    if (all.length === 0) {
      this.plot.replaceChildren(element('p', {class: 'muted'}, this.options.empty));
      this.tip.hidden = true;
      this.xs = [];
      return;
    }
    let [x0, x1] = [Infinity, -Infinity];
    let [y0, y1] = [Infinity, -Infinity];
    for (const p of all) {
      x0 = Math.min(x0, p.x);
      x1 = Math.max(x1, p.x);
      y0 = Math.min(y0, p.y);
      y1 = Math.max(y1, p.y);
    }
    x0 = Math.min(0, x0);
    if (x1 <= x0) x1 = x0 + 1;
    if ((this.options.fromZero || this.options.stacked) && !this.log) y0 = Math.min(0, y0);
    if (y1 <= y0)
      [y0, y1] = this.log ? [y0 / 2, y1 * 2] : [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
    const pad = this.log ? 0 : (y1 - y0) * 0.04;
    const [low, high] = this.log ? [y0 * 0.9, y1 * 1.1] : [y0 === 0 ? 0 : y0 - pad, y1 + pad];

    const inner = {w: this.width - MARGIN.left - MARGIN.right, h: HEIGHT - MARGIN.top - MARGIN.bottom};
    const sx = (x) => MARGIN.left + ((x - x0) / (x1 - x0)) * inner.w;
    const share = this.log ? (y) => Math.log(y / low) / Math.log(high / low) : (y) => (y - low) / (high - low);
    const sy = (y) => MARGIN.top + inner.h * (1 - share(y));
    const root = svg('svg', {
      width: this.width,
      height: HEIGHT,
      viewBox: `0 0 ${this.width} ${HEIGHT}`,
      role: 'img',
      tabindex: 0,
      'aria-label': this.describe(visible)
    });
    for (const y of this.log ? logTicks(low, high) : linearTicks(low, high, 5)) {
      root.append(
          svg('line', {class: 'grid', x1: MARGIN.left, x2: this.width - MARGIN.right, y1: sy(y), y2: sy(y)}),
          svg('text', {x: MARGIN.left - 6, y: sy(y) + 4, 'text-anchor': 'end'}, this.options.format(y)));
    }
    const bottom = MARGIN.top + inner.h;
    for (const x of linearTicks(x0, x1, Math.max(2, inner.w / 90))) {
      root.append(svg('text', {x: sx(x), y: bottom + 15, 'text-anchor': 'middle'}, String(Number(x.toPrecision(12)))));
    }
    root.append(
        svg('line', {class: 'axis', x1: MARGIN.left, x2: this.width - MARGIN.right, y1: bottom, y2: bottom}),
        svg('text', {x: this.width - MARGIN.right, y: HEIGHT - 4, 'text-anchor': 'end'}, 'step'));
    if (this.options.unit) root.append(svg('text', {x: 2, y: 11}, this.options.unit));
    let textEnd = -Infinity;
    for (const mark of marks) {
      if (mark.x < x0 || mark.x > x1) continue;
      const x = sx(mark.x);
      root.append(svg('line', {class: mark.restart ? 'restart' : 'mark', x1: x, x2: x, y1: MARGIN.top, y2: bottom}));
      // A text that would run into the one before, or over the edge, is left out; the stage table has it.
      const size = mark.text.length * 6.4;
      if (x + 3 < textEnd || x + 3 + size > this.width - MARGIN.right) continue;
      root.append(svg('text', {class: mark.restart ? 'restart-text' : '', x: x + 3, y: MARGIN.top - 5}, mark.text));
      textEnd = x + 9 + size;
    }
    for (const s of visible) this.drawSeries(root, s, sx, sy, usable);
    this.cursorLine = svg('line', {class: 'cursor', y1: MARGIN.top, y2: bottom, visibility: 'hidden'});
    root.append(this.cursorLine);
    const refocus = this.plot.contains(document.activeElement);
    this.plot.replaceChildren(root);
    if (refocus) root.focus({preventScroll: true});
    this.xs = [...new Set(all.map((p) => p.x))].sort((a, b) => a - b);
    this.sx = sx;
    this.visible = visible;
    root.addEventListener('pointermove', (event) => {
      const x = x0 + ((event.clientX - root.getBoundingClientRect().left - MARGIN.left) / inner.w) * (x1 - x0);
      this.point(nearest(this.xs, x));
    });
    root.addEventListener('pointerleave', () => this.point(null));
    root.addEventListener('blur', () => this.point(null));
    root.addEventListener('keydown', (event) => this.key_(event));
    if (this.cursor !== null) this.point(Math.min(this.cursor, this.xs.length - 1));
  }

  drawSeries(root, s, sx, sy, usable) {
    if (this.options.stacked) {
      const forth = s.points.map((p) => `${sx(p.x).toFixed(1)},${sy(p.y).toFixed(1)}`);
      const back = s.points.map((p) => `${sx(p.x).toFixed(1)},${sy(p.base).toFixed(1)}`).reverse();
      root.append(svg('polygon', {class: `area k${s.k}`, points: [...forth, ...back].join(' ')}));
      return;
    }
    let path = '';
    let part;
    let pen = false;
    for (const p of s.points) {
      if (!usable(p.y)) {
        pen = false;
        continue;
      }
      path += `${pen && p.part === part ? 'L' : 'M'}${sx(p.x).toFixed(1)} ${sy(p.y).toFixed(1)}`;
      pen = true;
      part = p.part;
    }
    root.append(svg('path', {class: `curve k${s.k}${s.dashed ? ' dashed' : ''}`, d: path}));
    // A line of one point is invisible without its dot.
    if (s.dots || s.points.length === 1) {
      for (const p of s.points.filter((q) => usable(q.y))) {
        root.append(svg('circle', {class: `dot k${s.k}`, cx: sx(p.x), cy: sy(p.y), r: 3}));
      }
    }
  }

  drawTools() {
    const names = this.data.series.map((s) => s.name);
    const key = JSON.stringify([names, [...this.hidden], this.log]);
    if (key === this.toolsKey) return;
    this.toolsKey = key;
    const focus = this.tools.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
    const buttons = this.data.series.map((s) => {
      const button = element(
          'button', {
            type: 'button',
            class: `k${s.k}`,
            'aria-pressed': String(!this.hidden.has(s.name)),
            title: 'show or hide this curve',
            'data-focus': `series ${s.name}`
          },
          element('span', {class: 'swatch'}), s.name);
      button.addEventListener('click', () => {
        if (!this.hidden.delete(s.name)) this.hidden.add(s.name);
        this.draw();
      });
      return button;
    });
    if (this.options.logToggle && names.length > 0) {
      const button = element(
          'button', {type: 'button', class: 'scale', 'aria-pressed': String(this.log), 'data-focus': 'log'},
          'log scale');
      button.addEventListener('click', () => {
        this.log = !this.log;
        this.draw();
      });
      buttons.push(button);
    }
    this.tools.replaceChildren(...buttons);
    if (focus !== undefined) this.tools.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
  }

  // For those who do not see the curve: the newest value of each.
  describe(visible) {
    const values = visible.filter((s) => s.points.length > 0).map((s) => {
      const last = s.points[s.points.length - 1];
      return `${s.name} ${this.options.format(last.value ?? last.y)}`;
    });
    return `${this.options.name}, newest values: ${values.join(', ')}. Arrow keys read the curve.`;
  }

  key_(event) {
    const last = this.xs.length - 1;
    const now = this.cursor ?? last;
    const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last}[event.key];
    if (event.key === 'Escape') this.point(null);
    if (to === undefined) return;
    event.preventDefault();
    this.point(Math.max(0, Math.min(last, to)));
  }

  // Shows the values at the index-th x; null: nothing.
  point(index) {
    this.cursor = index;
    if (index === null || this.xs.length === 0) {
      this.tip.hidden = true;
      this.cursorLine?.setAttribute('visibility', 'hidden');
      return;
    }
    const x = this.xs[index];
    const left = this.sx(x);
    this.cursorLine.setAttribute('x1', left);
    this.cursorLine.setAttribute('x2', left);
    this.cursorLine.setAttribute('visibility', 'visible');
    const lines = [element('p', {class: 'muted'}, `step ${x}`)];
    for (const s of this.visible) {
      const at = lastAt(s.points, x);
      if (at < 0) continue;
      const p = s.points[at];
      lines.push(element(
          'p', {class: `k${s.k}`}, element('span', {class: 'swatch'}),
          `${s.name} ${this.options.format(p.value ?? p.y)}${this.options.unit ? ` ${this.options.unit}` : ''}`));
    }
    this.tip.replaceChildren(...lines);
    this.tip.hidden = false;
    const room = this.width - this.tip.offsetWidth - 4;
    this.tip.style.left =
        `${Math.max(0, Math.min(room, left > this.width / 2 ? left - this.tip.offsetWidth - 10 : left + 10))}px`;
    this.tip.style.top = `${this.tools.offsetHeight + 24}px`;
  }
}

function nearest(xs, x) {
  let best = 0;
  for (let i = 1; i < xs.length; ++i) {
    if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
  }
  return best;
}

// Series with the same xs, one on top of the other.
function stack(series) {
  const base = new Map();
  return series.map((s) => ({
                      ...s,
                      points: s.points.map((p) => {
                        const from = base.get(p.x) || 0;
                        base.set(p.x, from + p.y);
                        return {...p, y: from + p.y, base: from, value: p.y};
                      })
                    }));
}
