// The files of a job as rows of a table: what the job tells of them, and what the coordinator sees of them on the disk.
import * as f from './format.js';

const CHECKPOINT = /^(checkpoints\/stage-(\d+)-step-(\d+))\//;

// Rows are {what, path, size, digest, file, files}: `file` can be downloaded, `files` are those in a folder.
// `listed`: [{path, bytes}], paths below the job's folder.
export function fileRows(job, listed) {
  // What students tell are paths of theirs; below the job's folder they are the same for everybody.
  const below = (path) => {
    const mark = `/${job.id}/`;
    const at = path.lastIndexOf(mark);
    return at < 0 ? null : path.slice(at + mark.length);
  };
  const left = new Map(listed.map((file) => [file.path, file]));
  const take = (path) => {
    const file = left.get(path);
    left.delete(path);
    return file;
  };
  const takeFolder = (folder) => [...left.keys()].filter((path) => path.startsWith(`${folder}/`)).map(take);
  const sizeOf = (files) => files.length > 0 ? f.bytes(files.reduce((sum, file) => sum + file.bytes, 0)) : '';
  const nameOf = (stage) => job.plan.stages[stage]?.name || `stage ${Number(stage) + 1}`;

  const rows = job.stages_done.map((s) => {
    const files = takeFolder(below(s.checkpoint));
    const what = `checkpoint after ${nameOf(s.stage)}`;
    return {what, path: s.checkpoint, size: sizeOf(files), digest: s.digest, files};
  });
  const results = [
    ['student\'s weights', job.artifacts?.safetensors, job.artifacts?.safetensors_bytes],
    ['student\'s program', job.artifacts?.torchscript, job.artifacts?.torchscript_bytes],
  ];
  for (const [what, path, bytes] of results) {
    if (path) rows.push({what, path, size: f.bytes(bytes), file: take(below(path))});
  }
  // What no report has told of yet, or never does.
  for (const path of [...left.keys()]) {
    const file = left.get(path);
    if (!file) continue;  // taken with its folder
    const checkpoint = CHECKPOINT.exec(path);
    if (checkpoint) {
      const [, folder, stage, step] = checkpoint;
      const files = takeFolder(folder);
      const what = `checkpoint in ${nameOf(stage)}, step ${step}`;
      rows.push({what, path: `${job.id}/${folder}`, size: sizeOf(files), files});
    } else {
      const what = path === 'result.json' ? 'results' : 'file';
      rows.push({what, path: `${job.id}/${path}`, size: f.bytes(file.bytes), file: take(path)});
    }
  }
  return rows;
}

// Where a file is downloaded.
export const fileAddress = (job, file) =>
    `/files/${[job.id, ...file.path.split('/')].map(encodeURIComponent).join('/')}`;
