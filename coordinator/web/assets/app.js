// The status page: fetches what changed every two seconds while the page is visible, and draws it.
import * as f from './format.js';
import {element} from './format.js';
import {headlineText, JobView, statePill} from './job.js';

const byId = (id) => document.getElementById(id);
const INTERVAL_MS = 2000;
const MOST_JOBS = 100;

const view = new JobView();
const state = {
  tags: new Map(),  // by address: {etag, body} of the newest answer
  clock: 0,         // coordinator's clock minus ours, in seconds
  jobs: [],
  chosen: null,  // id or name from the address bar; null: chosen by us
  shown: null,   // {id, job, points, from, events, after, files}
  files: false,  // whether the coordinator sees the students' files
};

const now = () => Date.now() / 1000 + state.clock;

class LoggedOut extends Error {}

// The JSON at an address of the API; unchanged documents are not sent again.
async function get(path, keep = true) {
  const known = keep ? state.tags.get(path) : undefined;
  const response = await fetch(`/api/v1/${path}`, {
    cache: 'no-store',
    credentials: 'same-origin',
    headers: known ? {'If-None-Match': known.etag} : {},
    signal: AbortSignal.timeout(15000),
  });
  const date = Date.parse(response.headers.get('Date'));
  // The header has whole seconds: half of one is the mean of what was cut off.
  if (Number.isFinite(date)) {
    const offset = date / 1000 + 0.5 - Date.now() / 1000;
    if (Math.abs(offset - state.clock) > 1.5) state.clock = Math.abs(offset) > 1.5 ? offset : 0;
  }
  if (response.status === 304) return known.body;
  if (response.status === 401) throw new LoggedOut();
  const body = await response.json();
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(body.error || `HTTP ${response.status}`);
  if (keep) state.tags.set(path, {etag: response.headers.get('ETag'), body});
  return body;
}

// All points and events that are new since the last time, page by page.
async function grow(shown) {
  const path = `jobs/${encodeURIComponent(shown.id)}`;
  for (;;) {
    const page = await get(`${path}/history?from=${shown.from}`, false);
    if (page === null || page.points.length === 0) break;
    shown.points.push(...page.points);
    shown.from = page.next;
  }
  for (;;) {
    const page = await get(`${path}/events?after=${shown.after}`, false);
    if (page === null || page.events.length === 0) break;
    shown.events.push(...page.events);
    shown.after = page.events[page.events.length - 1].sequence;
  }
}

function drawJobs() {
  const chosen = state.shown?.id;
  const rows = state.jobs.map(
      (job) =>
          [job.id, job.name, job.state,
           job.stage < job.stages ? `${job.stage + 1}/${job.stages} ${job.stage_name}` : `${job.stages}/${job.stages}`,
           job.total_steps > 0 ? Math.floor((job.done_steps * 100) / job.total_steps) : 0, headlineText(job.score),
           f.time(job.submitted_time),
           job.started_time > 0 ? f.duration((job.finished_time || now()) - job.started_time) : '-']);
  f.render(
      byId('jobs'), [rows, chosen],
      () => rows.length === 0 ?
          element('p', {class: 'muted'}, 'No jobs yet. Submit one: ', element('code', {}, 'distillctl submit FILE')) :
          f.table(
              'Jobs, newest first',
              [
                ['Job', 'short'], ['State', 'short'], ['Stage', 'short'], ['Done', 'short'], ['Test set', 'number'],
                ['Submitted', 'short'], ['Time', 'number']
              ],
              rows.map(([id, name, jobState, stage, done, score, submitted, time]) => {
                const link =
                    element('a', {href: `#job=${encodeURIComponent(id)}`, 'data-focus': `job ${id}`, title: name}, id);
                if (id === chosen) link.setAttribute('aria-current', 'true');
                return {
                  class: id === chosen ? 'chosen' : '',
                  cells: [
                    link, statePill(jobState), stage,
                    element(
                        'span', {},
                        element('progress', {max: '100', value: String(done), 'aria-label': `${id}: ${done}% done`}),
                        ` ${done}%`),
                    score, submitted, time
                  ]
                };
              }),
              rows.length > 8 ? 'high stack' : 'stack'));
}

const WORKERS = {
  idle: '',
  serving: 'run',
  training: 'run',
  draining: 'wait',
  stopped: 'wait',
  lost: 'bad',
  stuck: 'bad',
  cordoned: 'bad'
};

// What a worker that is going or gone serves is nothing that a job can name.
const offers = (worker) => !['draining', 'stopped', 'lost'].includes(worker.state);

function drawFleet(fleet) {
  byId('coordinator').textContent = `coordinator ${fleet.coordinator_version}, epoch ${fleet.coordinator_epoch}`;
  const rows =
      fleet.workers.map((w) => ({
                          kind: w.kind,
                          id: w.id,
                          state: w.state,
                          device: w.device || '-',
                          address: w.address || '-',
                          version: w.version || '-',
                          seen: w.heartbeat_age < 3 ? 'now' : `${f.duration(w.heartbeat_age)} ago`,
                          jobs: w.jobs.join(', ') || '-',
                          models: (offers(w) ? w.models : []).map(
                              (m) => `${m.name}: ${m.spec.arch}${m.spec.width > 0 ? ` width ${m.spec.width}` : ''}, ` +
                                  // Those of an archive are not known.
                                  `${Number(m.parameters) > 0 ? `${f.count(m.parameters)} parameters, ` : ''}` +
                                  m.digest.slice(0, 12)),
                        }));
  const draw = (box, kind, what) => {
    const workers = rows.filter((w) => w.kind === kind);
    f.render(
        byId(box), workers,
        () => workers.length === 0 ?
            element('p', {class: 'muted'}, `No ${kind} is registered.`) :
            f.table(
                what,
                [
                  ['Id', 'short'], ['State', 'short'], ['Device', 'short'], ['Address', 'short'], ['Heard of', 'short'],
                  ['Version', 'short'], ['Jobs', 'text'], ...(kind === 'teacher' ? [['Models', 'text']] : [])
                ],
                workers.map(
                    (w) =>
                        [w.id, f.pill(w.state, WORKERS[w.state] || ''), w.device, w.address, w.seen, w.version, w.jobs,
                         ...(kind === 'teacher' ? [element('span', {}, ...w.models.map((m) => element('div', {}, m)))] :
                                                  [])]),
                'stack labelled'));
  };
  draw('teachers', 'teacher', 'Teachers');
  draw('students', 'student', 'Students');
}

// The job from the address bar, else the newest that runs, else the newest.
function pick() {
  if (state.chosen) return state.chosen;
  const job = state.jobs.find((j) => j.state === 'running') || state.jobs[0];
  return job ? job.id : null;
}

async function refresh() {
  const [jobs, fleet] = await Promise.all([get(`jobs?limit=${MOST_JOBS}`), get('fleet', false)]);
  state.jobs = jobs.jobs;
  drawFleet(fleet);
  const wanted = pick();
  const job = wanted === null ? null : await get(`jobs/${encodeURIComponent(wanted)}`);
  if (job === null) {
    state.shown = null;
    view.hide();
    if (wanted !== null) setConnection(`no job is called ${wanted}`, 'wait');
  } else {
    if (state.shown?.id !== job.id) state.shown = {id: job.id, points: [], from: 0, events: [], after: '0'};
    state.shown.job = job;
    await grow(state.shown);
    if (state.files) state.shown.files = await get(`jobs/${encodeURIComponent(job.id)}/files`);
    view.show({...state.shown, now: now()});
    document.title = `${job.name} - Distillery`;
  }
  drawJobs();
  return wanted === null || job !== null;
}

function setConnection(text, kind) {
  const pill = byId('connection');
  if (pill.textContent === text) return;
  pill.textContent = text;
  pill.className = `pill ${kind}`;
}

let timer = 0;
let running = false;
let again = false;

// One round at a time; a wish that comes during one is served right after it.
async function poll() {
  clearTimeout(timer);
  if (running) {
    again = true;
    return;
  }
  running = true;
  try {
    if (await refresh()) setConnection('live', 'good');
  } catch (error) {
    if (error instanceof LoggedOut) {
      location.assign('/login');
      return;
    }
    setConnection(
        error instanceof TypeError || error.name === 'TimeoutError' ? 'coordinator does not answer' : error.message,
        'bad');
  } finally {
    running = false;
  }
  if (again) {
    again = false;
    poll();
  } else if (!document.hidden) {
    timer = setTimeout(poll, INTERVAL_MS);
  }
}

function readAddress() {
  const match = /^#job=(.+)$/.exec(location.hash);
  let chosen = null;
  try {
    chosen = match ? decodeURIComponent(match[1]) : null;
  } catch {
    chosen = null;  // not a valid escape: as if nothing was asked for
  }
  state.chosen = chosen;
}

addEventListener('hashchange', async () => {
  readAddress();
  await poll();
  byId('job-title').focus({preventScroll: true});
  byId('job').scrollIntoView({block: 'start'});
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) poll();
});

readAddress();
try {
  const session = await get('session', false);
  byId('logout').hidden = !session.login;
  state.files = session.files;
} catch {
  // Told by the first round.
}
poll();
