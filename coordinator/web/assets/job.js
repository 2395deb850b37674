// One job: facts, timeline, curves, files, events, plan. Draws what app.js has fetched.
import {Chart} from './chart.js';
import {fileAddress, fileRows} from './files.js';
import * as f from './format.js';
import {element, svg} from './format.js';

const byId = (id) => document.getElementById(id);
const STATES = {
  JOB_STATE_QUEUED: 'queued',
  JOB_STATE_RUNNING: 'running',
  JOB_STATE_SUCCEEDED: 'succeeded',
  JOB_STATE_FAILED: 'failed',
  JOB_STATE_CANCELLED: 'cancelled'
};
const KINDS = {
  queued: 'wait',
  running: 'run',
  succeeded: 'good',
  failed: 'bad',
  cancelled: 'wait'
};
const LEVELS = {
  EVENT_LEVEL_INFO: 1,
  EVENT_LEVEL_WARNING: 2,
  EVENT_LEVEL_ERROR: 3
};
// Order and colours of the parts of a step; parts of newer students come behind.
const PARTS = ['data', 'wait_features', 'forward', 'loss', 'sync', 'backward', 'optimizer'];
const MOST_EVENTS = 500;

export const stateName = (state) => STATES[state] || state;
export const statePill = (name) => f.pill(name, KINDS[name] || '');
const isEnded = (job) => !['queued', 'running'].includes(stateName(job.state));

const hasProgress = (job) => job.progress && job.progress.time > 0;
const hasFiles = (job) => job.artifacts && (job.artifacts.safetensors || job.artifacts.torchscript);
// What was measured on the test set: [{name, value}], the headline first; empty where nothing was.
const metricsOf = (score) => score?.metrics ?? [];
const LABELS = {top1: 'top-1', top5: 'top-5', mean_iou: 'mIoU'};
const labelOf = (name) => LABELS[name] ?? name.replaceAll('_', ' ');
export const scoreText = (score) =>
    metricsOf(score).map((metric) => `${labelOf(metric.name)} ${f.percent(metric.value)}`).join(', ') || '-';
// The headline alone.
export const headlineText = (score) => scoreText({metrics: metricsOf(score).slice(0, 1)});
const studentScoreOf = (job) => hasFiles(job) ? job.artifacts.student_score : job.progress?.score;
const teacherScoreOf = (job) => job.plan.teachers.length === 0 ? null :
    hasFiles(job)                                              ? job.artifacts.teacher_score :
                                                                 job.progress?.teacher_score;

// Where the job is, as distillctl computes it: the first stage that is not done, its steps, and steps over all stages.
function positionOf(job) {
  const stages = job.plan.stages;
  const done = new Set(job.stages_done.map((s) => s.stage));
  let stage = 0;
  if (stateName(job.state) === 'succeeded') stage = stages.length;
  while (stage < stages.length && done.has(stage)) ++stage;
  if (stage < stages.length && hasProgress(job) && job.progress.stage < stages.length)
    stage = Math.max(stage, job.progress.stage);
  const inStage = stage < stages.length && hasProgress(job) && job.progress.stage === stage;
  const step = inStage ? Math.min(Number(job.progress.step), Number(stages[stage].steps)) : 0;
  const before = stages.slice(0, stage).reduce((sum, s) => sum + Number(s.steps), 0);
  return {stage, step, done: before + step, total: stages.reduce((sum, s) => sum + Number(s.steps), 0)};
}

// Whether the newest report says nothing about now, as distillctl decides it: the job waits for a teacher, or rank 0 has
// been silent for longer than three of its reports should take.
function isStalled(job, now) {
  if (job.wait === 'JOB_WAIT_TEACHER') return true;
  if (stateName(job.state) !== 'running' || !hasProgress(job)) return false;
  const rate = job.progress.images_per_second;
  return now - job.progress.time > Math.max(20, 3 * (5 + (rate > 0 ? job.plan.batch_size / rate : 0)));
}

const starts = (job) => {
  let sum = 0;
  return job.plan.stages.map((s) => (sum += Number(s.steps)) - Number(s.steps));
};

// Groups of ranks, from the coordinator's own events: when each was formed and when it was lost.
export function groupsOf(events) {
  const groups = [];
  for (const event of events) {
    if (event.type === 'EVENT_TYPE_GROUP_FORMED') {
      groups.push({generation: Number(event.generation), formed: event.time, lost: null});
    } else if (event.type === 'EVENT_TYPE_GROUP_LOST' && groups.length > 0) {
      groups[groups.length - 1].lost = event.time;
    }
  }
  return groups;
}

function modelText(spec) {
  const parts = [spec.arch.replace(/(@sha256:.{12}).*/, '$1')];
  if (spec.width > 0) parts.push(`width ${spec.width}`);
  if (spec.num_classes > 0) parts.push(`${spec.num_classes} classes`);
  if (spec.in_channels > 0) parts.push(`input ${spec.in_channels}x${spec.image_height}x${spec.image_width}`);
  return parts.join(', ');
}

function knobText(knob) {
  if ('number' in knob) return `${knob.name}=${f.number(knob.number)}`;
  if ('flag' in knob) return `${knob.name}=${knob.flag}`;
  return 'text' in knob ? `${knob.name}=${knob.text}` : knob.name;
}

function lossText(loss) {
  const parts =
      [loss.name === loss.type || !loss.name ? loss.type : `${loss.name}: ${loss.type}`, ...loss.knobs.map(knobText)];
  if (loss.adapter && loss.adapter !== 'none')
    parts.push(`${loss.adapter} ${loss.student_channels}→${loss.teacher_channels}`);
  return parts.join(' ');
}

// Reports by step: after a restart steps are done again, and the newest report of a step counts.
function bySteps(points, wanted) {
  const found = new Map();
  for (const point of points) {
    if (wanted(point)) found.set(Number(point.total_step), point);
  }
  return [...found.entries()].sort((a, b) => a[0] - b[0]);
}

function scoreSeries(job, points) {
  const found = new Map();
  let before = '';
  for (const point of points) {
    const now = JSON.stringify(metricsOf(point.score));
    if (metricsOf(point.score).length > 0 && now !== before) found.set(Number(point.total_step), metricsOf(point.score));
    before = now;
  }
  const ends = starts(job).map((start, i) => start + Number(job.plan.stages[i].steps));
  for (const stage of job.stages_done) {
    if (metricsOf(stage.score).length > 0 && ends[stage.stage] !== undefined) {
      found.set(ends[stage.stage], metricsOf(stage.score));
    }
  }
  const measured = [...found.entries()].sort((a, b) => a[0] - b[0]);
  const teacher = metricsOf(teacherScoreOf(job));
  const end = Math.max(positionOf(job).done, 1);
  const names = [...new Set([...measured.flatMap(([, metrics]) => metrics), ...teacher].map((metric) => metric.name))];
  const series = [];
  for (const name of names) {
    const k = series.length;
    const valueIn = (metrics) => metrics.find((metric) => metric.name === name)?.value;
    const student = measured.filter(([, metrics]) => valueIn(metrics) !== undefined)
                        .map(([x, metrics]) => ({x, y: valueIn(metrics) * 100}));
    if (student.length > 0) series.push({name: `student ${labelOf(name)}`, k: k % 8, dots: true, points: student});
    if (valueIn(teacher) !== undefined) {
      const y = valueIn(teacher) * 100;
      series.push({name: `teacher ${labelOf(name)}`, k: (k + 1) % 8, dashed: true, points: [{x: 0, y}, {x: end, y}]});
    }
  }
  return series;
}

export class JobView {
  constructor() {
    this.charts = {
      loss: new Chart(
          byId('loss-chart'),
          {name: 'loss', format: f.number, unit: '', logToggle: true, empty: 'No loss reported yet.'}),
      score: new Chart(byId('score-chart'), {
        name: 'results on the test set',
        format: (v) => String(Number(v.toFixed(2))),
        unit: '%',
        empty: 'Nothing evaluated yet.'
      }),
      parts: new Chart(
          byId('parts-chart'),
          {name: 'parts of a step', format: f.number, unit: 'ms', stacked: true, empty: 'No step reported yet.'}),
      speed: new Chart(
          byId('speed-chart'),
          {name: 'speed', format: f.number, unit: 'images/s', fromZero: true, empty: 'No step reported yet.'}),
    };
    this.level = byId('events-level');
    this.level.addEventListener('change', () => this.drawEvents());
    new ResizeObserver(() => {
      if (this.data && byId('timeline').clientWidth !== this.timelineWidth) this.drawTimeline();
    }).observe(byId('timeline'));
  }

  // data: {job, points, events, now}; times are the coordinator's.
  show(data) {
    this.data = data;
    byId('job').hidden = false;
    this.drawHead();
    this.drawTimeline();
    this.drawStages();
    this.drawCurves();
    this.drawFiles();
    this.drawEvents();
    this.drawPlan();
  }

  hide() {
    this.data = null;
    byId('job').hidden = true;
  }

  drawHead() {
    const {job, now} = this.data;
    const state = stateName(job.state);
    byId('job-title').textContent = job.name === job.id ? job.id : `${job.name} (${job.id})`;
    f.render(byId('job-state'), state, () => statePill(state));
    byId('job-reason').textContent = job.reason;
    byId('job-reason').hidden = job.reason === '';
    const at = positionOf(job);
    const stages = job.plan.stages;
    const progress = job.progress;
    const elapsed = job.started_time > 0 ? (job.finished_time || now) - job.started_time : -1;
    let eta = '';
    const speed = hasProgress(job) ? progress.images_per_second / job.plan.batch_size : 0;
    const stalled = isStalled(job, now);
    if (state === 'running' && speed > 0 && !stalled) {
      eta = f.duration(Math.max(0, (at.total - at.done) / speed - Math.min(30, Math.max(0, now - progress.time))));
    }
    f.facts(byId('job-facts'), [
      [
        'Stage',
        at.stage < stages.length ? `${at.stage + 1}/${stages.length} ${stages[at.stage].name}` :
                                   `${stages.length}/${stages.length}`
      ],
      ['Steps', at.total > 0 ? `${at.done} of ${at.total} (${Math.floor(at.done * 100 / at.total)}%)` : ''],
      ['Doing', hasProgress(job) && !isEnded(job) ? progress.phase : ''],
      ['Time', elapsed >= 0 ? f.duration(elapsed) : ''],
      ['Ends in about', eta],
      [
        'Speed',
        stalled && hasProgress(job)                        ? `none now, the newest report is ${f.duration(now - progress.time)} old` :
            hasProgress(job) && progress.images_per_second > 0 ? `${f.rate(progress.images_per_second)} images/s` :
                                                                 ''
      ],
      ['Loss', hasProgress(job) && Number(progress.step) > 0 ? f.number(progress.loss) : ''],
      ['Learning rate', hasProgress(job) && Number(progress.step) > 0 ? f.number(progress.learning_rate) : ''],
      ['Student on the test set', scoreText(studentScoreOf(job))],
      ['Teacher on the test set', metricsOf(teacherScoreOf(job)).length > 0 ? scoreText(teacherScoreOf(job)) : ''],
      ['Submitted', f.time(job.submitted_time)],
      ['Started', job.started_time > 0 ? f.time(job.started_time) : ''],
      ['Finished', job.finished_time > 0 ? f.time(job.finished_time) : ''],
      ['Generation', `${job.generation}, ${job.restarts} ${job.restarts === 1 ? 'restart' : 'restarts'}`],
      ['Members by rank', job.ranks.join(', ') || `none yet, wants ${job.plan.students}`],
    ]);
  }

  // A row a stage: name and figures above a bar on the time since submission; lost groups are shaded, new ones marked.
  drawTimeline() {
    const {job, events, now} = this.data;
    const box = byId('timeline');
    const width = box.clientWidth;
    this.timelineWidth = width;
    if (width === 0) return;
    const from = job.submitted_time;
    const to = Math.max(from + 1, job.finished_time || now);
    const sx = (t) => Math.max(0, Math.min(1, (t - from) / (to - from))) * (width - 2) + 1;
    const rows = [];
    const started = job.started_time || 0;
    const waited = (started || job.finished_time || now) - from;
    if (!started || waited > 0.02 * (to - from)) {
      rows.push({
        label: `waiting for students and teachers, ${f.duration(waited)}`,
        from,
        to: started || to,
        kind: 'bar-wait'
      });
    }
    const at = positionOf(job);
    const done = new Map(job.stages_done.map((s) => [s.stage, s]));
    let begin = started;
    job.plan.stages.forEach((stage, i) => {
      const result = done.get(i);
      const name = `${i + 1} ${stage.name}`;
      if (result) {
        rows.push({
          label: `${name}, ${stage.steps} steps, ${f.duration(result.committed_time - begin)}`,
          from: begin,
          to: result.committed_time,
          kind: 'bar-done'
        });
        begin = result.committed_time;
      } else if (started && i === at.stage) {
        const end = job.finished_time || now;
        rows.push({
          label: `${name}, ${at.step} of ${stage.steps} steps, ${f.duration(end - begin)}`,
          from: begin,
          to: end,
          kind: isEnded(job) ? 'bar-stopped' : 'bar-now'
        });
      } else {
        rows.push({label: `${name}, ${stage.steps} steps, not started`, from: 0, to: 0, kind: ''});
      }
    });
    const row = 34;
    const top = 20;
    const height = top + rows.length * row + 22;
    const groups = groupsOf(events);
    const root = svg('svg', {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: 'img',
      'aria-label': `Timeline: ${rows.map((r) => r.label).join('; ')}. ${job.restarts} restarts.`
    });
    const bottom = top + rows.length * row;
    groups.forEach((group, i) => {
      if (group.lost === null) return;
      const end = groups[i + 1] ? groups[i + 1].formed : job.finished_time || now;
      root.append(
          svg('rect', {
            class: 'bar-stopped',
            'fill-opacity': 0.25,
            x: sx(group.lost),
            y: top,
            height: bottom - top,
            width: Math.max(1, sx(end) - sx(group.lost))
          }),
          svg('line', {class: 'restart', x1: sx(group.lost), x2: sx(group.lost), y1: top - 4, y2: bottom}));
    });
    rows.forEach((r, i) => {
      const y = top + i * row;
      root.append(
          svg('text', {class: 'label', x: 1, y: y + 12}, r.label),
          svg('rect', {class: 'bar-ground', x: 1, y: y + 17, width: width - 2, height: 11, rx: 3}));
      if (r.kind) {
        root.append(svg(
            'rect',
            {class: r.kind, x: sx(r.from), y: y + 17, width: Math.max(2, sx(r.to) - sx(r.from)), height: 11, rx: 3}));
      }
    });
    let textEnd = -Infinity;
    groups.forEach((group, i) => {
      if (i === 0) return;
      const x = sx(group.formed);
      const text = `generation ${group.generation}`;
      root.append(svg('line', {class: 'restart', x1: x, x2: x, y1: top - 4, y2: bottom}));
      const left = Math.min(x, width - text.length * 6.8);
      if (left < textEnd) return;
      root.append(svg('text', {class: 'restart-text', x: left, y: 11}, text));
      textEnd = left + text.length * 6.8 + 6;
    });
    const marks = Math.max(2, Math.floor(width / 160));
    for (let i = 0; i <= marks; ++i) {
      const t = from + ((to - from) * i) / marks;
      root.append(
          svg('text',
              {x: sx(t),
               y: height - 5,
               'text-anchor': i === 0 ? 'start' :
                   i === marks        ? 'end' :
                                        'middle'},
              f.duration(t - from)));
    }
    box.replaceChildren(root);
  }

  drawStages() {
    const {job} = this.data;
    f.render(
        byId('stages'), job.stages_done,
        () => job.stages_done.length === 0 ?
            [] :
            f.table(
                'Stages that are done',
                [
                  ['#', 'number'], ['Stage', 'short'], ['Loss', 'number'], ['Test set', 'number'], ['Time', 'number'],
                  ['Committed', 'short'], ['Checkpoint', 'text']
                ],
                job.stages_done.map(
                    (result) =>
                        [String(result.stage + 1), job.plan.stages[result.stage]?.name || '?', f.number(result.loss),
                         scoreText(result.score), f.duration(result.seconds), f.time(result.committed_time),
                         this.path(result.checkpoint)]),
                'stack labelled'));
  }

  drawCurves() {
    const {job, points, events} = this.data;
    const marks = starts(job).map((x, i) => ({x, text: job.plan.stages[i].name}));
    const trained = bySteps(points, (p) => Number(p.step) > 0 && p.terms.length > 0);
    const names = [...new Set(trained.flatMap(([, p]) => p.terms.map((t) => t.name)))];
    const series =
        [{name: 'loss (weighted sum)', k: 0, points: trained.map(([x, p]) => ({x, y: Number(p.loss), part: p.stage}))}];
    names.forEach((name, i) => series.push({
      name,
      k: 1 + (i % 7),
      points: trained.flatMap(
          ([x, p]) => p.terms.filter((t) => t.name === name).map((t) => ({x, y: Number(t.value), part: p.stage})))
    }));
    // Steps at which a new group took the job up again.
    const resumed = [];
    for (const group of groupsOf(events).slice(1)) {
      const first = points.find((p) => p.time >= group.formed && Number(p.total_step) > 0);
      if (first) resumed.push({x: Number(first.total_step), text: `generation ${group.generation}`, restart: true});
    }
    this.charts.loss.update(trained.length > 0 ? series : [], [...marks, ...resumed]);
    this.charts.score.update(scoreSeries(job, points), marks);
    const timed = bySteps(points, (p) => p.step_seconds.length > 0);
    const parts = [...new Set([...PARTS, ...timed.flatMap(([, p]) => p.step_seconds.map((s) => s.name))])].filter(
        (name) => timed.some(([, p]) => p.step_seconds.some((s) => s.name === name)));
    const value = (p, name) => 1000 * Number(p.step_seconds.find((s) => s.name === name)?.value ?? 0);
    this.charts.parts.update(
        parts.map((name, i) => ({name, k: i % 8, points: timed.map(([x, p]) => ({x, y: value(p, name)}))})), marks);
    this.charts.speed.update(
        timed.length > 0 ? [{
          name: 'all ranks',
          k: 2,
          points: timed.map(([x, p]) => ({x, y: Number(p.images_per_second), part: p.stage}))
        }] :
                           [],
        marks);
    this.drawParts(timed.length > 0 ? timed[timed.length - 1][1] : null, parts, value);
  }

  // The newest step, as one bar.
  drawParts(point, parts, value) {
    const shares = point ? parts.map((name, i) => ({name, ms: value(point, name), k: i % 8})) : [];
    const sum = shares.reduce((total, s) => total + s.ms, 0);
    f.render(byId('parts'), shares, () => {
      if (!(sum > 0)) return [];
      const root = svg('svg', {
        class: 'parts-bar',
        width: '100%',
        height: 18,
        viewBox: '0 0 1000 18',
        preserveAspectRatio: 'none',
        role: 'img',
        'aria-label': 'Shares of the newest step; the list below has the numbers'
      });
      let x = 0;
      for (const s of shares) {
        const width = (1000 * s.ms) / sum;
        root.append(svg('rect', {class: `area k${s.k}`, x, y: 0, width, height: 18}));
        x += width;
      }
      const list = element(
          'ul', {class: 'parts-list'},
          ...shares.map(
              (s) => element(
                  'li', {class: `k${s.k}`}, element('span', {class: 'swatch'}),
                  `${s.name} ${f.number(s.ms)} ms, ${Math.round((100 * s.ms) / sum)}%`)));
      return [element('p', {class: 'muted'}, `Newest report: ${f.number(sum)} ms a step on rank 0.`), root, list];
    });
  }

  // `address`: where the file can be downloaded, if it can.
  path(text, address = null) {
    const code = element('code', {}, text);
    const node =
        element('span', {}, address ? element('a', {href: address, download: '', 'data-focus': address}, code) : code);
    if (text && navigator.clipboard) {
      const button = element(
          'button', {type: 'button', class: 'copy', 'aria-label': `Copy ${text}`, 'data-focus': `copy ${text}`},
          'copy');
      button.addEventListener('click', async () => {
        try {
          await navigator.clipboard.writeText(text);
          button.textContent = 'copied';
        } catch {
          button.textContent = 'not allowed';
        }
      });
      node.append(button);
    }
    return node;
  }

  drawFiles() {
    const {job} = this.data;
    const rows = fileRows(job, this.data.files?.files || []);
    const where = ({path, file, files}) => {
      const node = this.path(path, file ? fileAddress(job, file) : null);
      if (!files || files.length === 0) return node;
      const links = files.map(
          (one) => element(
              'a', {href: fileAddress(job, one), download: '', title: f.bytes(one.bytes), 'data-focus': one.path},
              one.path.split('/').pop()));
      return element(
          'div', {}, node, element('div', {class: 'links'}, ...links.flatMap((a, i) => i > 0 ? [', ', a] : [a])));
    };
    f.render(
        byId('files'), [job.id, rows, this.data.files === undefined, this.data.files?.problem],
        () =>
            [element(
                 'p', {class: 'muted'},
                 this.data.files === undefined ?
                     'Paths on the machine or volume of the students. They can be downloaded here when the ' +
                         'coordinator sees that folder (its option --files-dir).' :
                     this.data.files?.problem ||
                         'Paths as the student that wrote them names them; names of files are downloads.'),
             rows.length === 0 ?
                 element('p', {}, 'None yet.') :
                 f.table(
                     'Files',
                     [['What', 'short'], ['Path', 'text'], ['Size', 'number'], ['SHA-256 of the manifest', 'text']],
                     rows.map(
                         (row) =>
                             [row.what, where(row), row.size, row.digest ? element('code', {}, row.digest) : null]),
                     'stack'),
             element(
                 'p', {class: 'muted'}, 'The same as JSON: ',
                 ...[['job', ''], ['curve', '/history'], ['events', '/events']].flatMap(
                     ([text, part], i) =>
                         [i > 0 ? ', ' : '',
                          element('a', {href: `/api/v1/jobs/${encodeURIComponent(job.id)}${part}`}, text)])),
    ]);
  }

  drawEvents() {
    const {job, events} = this.data;
    const least = Number(this.level.value);
    const chosen = events.filter((e) => (LEVELS[e.level] || 1) >= least);
    const newest = chosen.slice(-MOST_EVENTS).reverse();
    f.render(
        byId('events'), [job.id, least, newest.map((e) => e.sequence)],
        () => newest.length === 0 ? element('p', {class: 'muted'}, 'None.') : [
          f.table(
              'Events, newest first', [['Time', 'short'], ['Level', 'short'], ['Source', 'short'], ['Text', 'text']],
              newest.map((e) => {
                const level = (e.level || '').replace('EVENT_LEVEL_', '').toLowerCase();
                return {class: level, cells: [f.time(e.time), level, e.source, e.text]};
              }),
              'high stack'),
          chosen.length > newest.length ?
              element(
                  'p', {class: 'muted'},
                  `The newest ${newest.length} of ${chosen.length}; all: distillctl logs ${job.id}`) :
              ''
        ]);
  }

  drawPlan() {
    const {plan} = this.data.job;
    const plural = (n, noun) => `${n} ${noun}${Number(n) === 1 ? '' : 's'}`;
    f.facts(byId('plan-facts'), [
      ['File', this.data.job.file_name],
      ['Overrides', this.data.job.overrides.join(', ')],
      ['Preset', plan.preset],
      ['Student', modelText(plan.student)],
      ...plan.teachers.map((t) => ['Teacher', `${t.model} (${modelText(t.spec)})`]),
      ...plan.teachers.map((t) => ['Teacher\'s digest', t.digest]),
      ['Data', `${plan.data.format} ${plan.data.path}`],
      ['Seed', plan.seed],
      ['Ranks', `${plural(plan.students, 'student')} with ${plural(plan.threads, 'thread')}, batch ${plan.batch_size}`],
      ['Device', plan.device],
      ['Features travel as', plan.teachers.length > 0 ? plan.wire_dtype : ''],
    ]);
    f.render(
        byId('plan'), plan.stages,
        () => f.table(
            'Stages of the plan',
            [
              ['#', 'number'], ['Stage', 'short'], ['Steps', 'number'], ['Trains', 'text'], ['Loss', 'text'],
              ['Weight', 'number'], ['Student tap', ''], ['Teacher tap', ''], ['Learning rate', 'short']
            ],
            plan.stages.flatMap(
                (stage, i) =>
                    (stage.losses.length > 0 ? stage.losses : [null])
                        .map(
                            (loss, j) =>
                                [j === 0 ? String(i + 1) : '', j === 0 ? stage.name : '', j === 0 ? stage.steps : '',
                                 j === 0 ? (stage.trainable_globs.length > 0 ? stage.trainable_globs : stage.trainable)
                                               .join(', ') :
                                           '',
                                 loss ? lossText(loss) : '', loss ? f.number(loss.weight) : '',
                                 loss ? loss.student_tap || '(output)' : '',
                                 loss ? (loss.needs_teacher ? loss.teacher_tap || '(output)' : '-') : '',
                                 j === 0 ?
                                     `${stage.optimizer.type} ${f.number(stage.optimizer.lr)} ${stage.schedule.type}` :
                                     ''])),
            'stack labelled'));
  }
}
