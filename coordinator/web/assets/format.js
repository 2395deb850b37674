// Numbers as distillctl prints them (coordinator/cli/units.cc), and small helpers for building the page. Data becomes
// text by textContent only.

const NONE = '-';

function threeDigits(n) {
  return n < 9.995 ? n.toFixed(2) : n < 99.95 ? n.toFixed(1) : n.toFixed(0);
}

export function count(value) {
  let n = Number(value);
  if (!Number.isFinite(n)) return NONE;
  if (n < 1000) return String(n);
  let unit = '';
  for (unit of ['k', 'M', 'G', 'T']) {
    n /= 1000;
    if (n < 999.5) break;
  }
  return threeDigits(n) + unit;
}

export function bytes(value) {
  let n = Number(value);
  if (!Number.isFinite(n)) return NONE;
  if (n < 1024) return `${n} B`;
  let unit = '';
  for (unit of ['KiB', 'MiB', 'GiB', 'TiB']) {
    n /= 1024;
    if (n < 1023.5) break;
  }
  return `${threeDigits(n)} ${unit}`;
}

// Images per second.
export function rate(value) {
  const n = Number(value);
  return !Number.isFinite(n) || n <= 0 ? NONE : n < 99.95 ? n.toFixed(1) : n.toFixed(0);
}

export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return NONE;
  if (seconds < 9.95) return `${seconds.toFixed(1)}s`;
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, '0');
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${two(Math.floor((s % 3600) / 60))}m`;
  return `${Math.floor(s / 86400)}d${two(Math.floor((s % 86400) / 3600))}h`;
}

// A share of one; null and negative values mean "not measured".
export function percent(share) {
  return share === null || share === undefined || !(share >= 0) ? NONE : `${(share * 100).toFixed(2)}%`;
}

// Four significant digits, as printf's %.4g.
export function number(value) {
  const n = Number(value);
  if (!Number.isFinite(n)) return Number.isNaN(n) ? 'nan' : n > 0 ? 'inf' : '-inf';
  if (n === 0) return '0';
  const [digits, exponent] = n.toExponential(3).split('e');
  const power = Number(exponent);
  if (power >= -4 && power < 4) return String(Number(n.toPrecision(4)));
  return `${Number(digits)}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
}

export function time(seconds) {
  if (!(seconds > 0)) return NONE;
  const t = new Date(seconds * 1000);
  const two = (n) => String(n).padStart(2, '0');
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} ` +
      `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
}

// element("td", {class: "number"}, "text", node...)
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = 'http://www.w3.org/2000/svg';
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

// columns: [[title, class]...]; rows: arrays of texts and nodes, or {class, cells}. The box is scrollable by keyboard.
// kind: "high" (scrolls downwards too), "stack" (rows become blocks on a phone),
// "labelled" (each value of such a block with its column's title).
export function table(label, columns, rows, kind = '') {
  const head =
      element('tr', {}, ...columns.map(([title, kind]) => element('th', {scope: 'col', class: kind || ''}, title)));
  const body = rows.map((row) => {
    const cells = Array.isArray(row) ? row : row.cells;
    return element(
        'tr', {class: row.class || ''},
        ...cells.map((cell, i) => element('td', {class: columns[i][1] || '', 'data-title': columns[i][0]}, cell)));
  });
  return element(
      'div', {class: `scroll ${kind}`, tabindex: '0', role: 'region', 'aria-label': label, 'data-focus': 'table'},
      element('table', {}, element('thead', {}, head), element('tbody', {}, ...body)));
}

// What each node shows, see render().
const shown = new WeakMap();

// Replaces the content only when `key` (anything that JSON can tell apart) has changed, and then keeps scroll positions
// and the focus: an element with data-focus hands it to the new one of the same value.
export function render(node, key, build) {
  const text = JSON.stringify(key);
  if (shown.get(node) === text) return;
  shown.set(node, text);
  const scroll = node.querySelector('.scroll');
  const [top, left] = scroll ? [scroll.scrollTop, scroll.scrollLeft] : [0, 0];
  const focus = node.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  node.replaceChildren(...[build()].flat());
  const next = node.querySelector('.scroll');
  if (next) {
    next.scrollTop = top;
    next.scrollLeft = left;
  }
  if (focus !== undefined) node.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({preventScroll: true});
}

// A list of terms and texts for a <dl>.
export function facts(node, pairs) {
  render(
      node, pairs,
      () => pairs.filter(([, value]) => value !== null && value !== '')
                .map(([term, value]) => element('div', {}, element('dt', {}, term), element('dd', {}, value))));
}

export function pill(text, kind) {
  return element('span', {class: `pill ${kind}`}, text);
}
