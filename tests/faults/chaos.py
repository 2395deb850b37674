#!/usr/bin/env python3
"""Kills, stops, tampers with and starves the processes of a cluster at random, and looks whether any job notices.

    tests/faults/chaos.py --bin build/dev/bin [--faults 200] [--seed 1] [--only kill,term,stop,tamper,fill,lock]

A cluster of one coordinator, two teachers and two students on loopback runs the same job again and again while faults
hit it; a supervisor starts again what died. Each job must succeed with the very bytes of an undisturbed run. At the
end: a table of faults, the time from a student's SIGKILL to the next training step of the job, and exit code 1 if a job
was lost, stuck or differs.

`fill` needs root: the work folder is then a small tmpfs of its own. Without it that kind is left out, and said so.
"""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

DATA_ROOT = "/usr/share/datasets"
JOB = """
name: chaos
seed: 7
students: 2
threads: 1
device: cpu
batch_size: 64
student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}
teacher: fashion
data: {format: idx, path: fashion-mnist, train_limit: 2048, transforms: {train: [horizontal_flip]}}
optimizer: {type: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0005}
checkpoint: {every: 10}
log_every: 4
stages:
  - {name: mimic, trainable: [conv1, bn1, layer1], steps: 60, losses: [{type: l2, student: layer1, teacher: layer1, adapter: auto}]}
  - name: whole
    steps: 150
    losses:
      - {type: cross_entropy, weight: 0.1}
      - {type: kd, weight: 0.9, temperature: 4}
      - {type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3, adapter: auto}
"""
KINDS = ("kill", "term", "stop", "tamper", "fill", "lock")


class Cluster:
    """The processes, and a thread that starts again what ended."""

    def __init__(self, bin_dir, folder, rng):
        self.bin, self.dir, self.rng = pathlib.Path(bin_dir).resolve(), pathlib.Path(folder), rng
        self.address, self.processes, self.due, self.exits = None, {}, {}, collections.Counter()
        self.lock, self.running = threading.Lock(), True
        self.mounted = self.mount_work()
        teacher = pathlib.Path(__file__).resolve().parents[2] / "examples/teachers/fashion-resnet20.safetensors"
        common = lambda name: ["--id", name, "--ready-file", str(self.dir / f"{name}.ready"), "--http-listen", "127.0.0.1:0"]
        self.commands = {
            "c": lambda: ["distill-coordinator", "--listen", self.address or "127.0.0.1:0", "--state-dir", str(self.dir / "state"),
                          "--ready-file", str(self.dir / "c.ready"), "--http-listen", "127.0.0.1:0", "--heartbeat", "0.5"]}
        for t in ("t0", "t1"):
            self.commands[t] = lambda t=t: ["distill-teacher", "--coordinator", self.address, "--threads", "1", "--device", "cpu",
                                            "--listen", "127.0.0.1:0", "--model", f"fashion={teacher}", *common(t)]
        for s in ("s0", "s1"):
            self.commands[s] = lambda s=s: ["distill-student", "--coordinator", self.address, "--data-root", DATA_ROOT,
                                            "--work-dir", str(self.dir / "work"), "--collective-timeout", "10", *common(s)]
        self.start("c")
        end = time.monotonic() + 60
        while not (self.dir / "c.ready").exists():
            if time.monotonic() > end:
                sys.exit("the coordinator did not become ready: " + self.log("c"))
            time.sleep(0.05)
        self.address = dict(line.split("=", 1) for line in (self.dir / "c.ready").read_text().split())["address"]
        for name in ("t0", "t1", "s0", "s1"):
            self.start(name)
        threading.Thread(target=self.supervise, daemon=True).start()

    def mount_work(self):
        work = self.dir / "work"
        work.mkdir()
        return os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", work],
                                                    stderr=subprocess.DEVNULL).returncode == 0

    def start(self, name):
        argv = self.commands[name]()
        with open(self.dir / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen([str(self.bin / argv[0]), *argv[1:]], stdout=log, stderr=log)

    def supervise(self):
        while self.running:
            with self.lock:
                for name, process in self.processes.items():
                    if process.poll() is None:
                        continue
                    if name not in self.due:
                        self.exits[(name[0], process.returncode)] += 1
                        self.due[name] = time.monotonic() + self.rng.uniform(0.1, 1.5)
                    elif time.monotonic() >= self.due[name]:
                        del self.due[name]
                        self.start(name)
            time.sleep(0.05)

    def signal(self, name, number):
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(number)

    def log(self, name):
        return (self.dir / f"{name}.log").read_text(errors="replace")[-2000:]

    def ctl(self, *argv):
        return subprocess.run([str(self.bin / "distillctl"), "--coordinator", self.address, *argv], capture_output=True, text=True,
                              timeout=60)

    def submit(self):
        path = self.dir / "job.yaml"
        path.write_text(JOB)
        for _ in range(120):  # the coordinator may just be away, and teachers, too
            done = self.ctl("submit", str(path), "--output", "json", "--request-id", f"r{time.time_ns()}")
            if done.returncode == 0:
                return json.loads(done.stdout)["job_id"]
            time.sleep(0.5)
        sys.exit(f"the job cannot be submitted: {done.stderr}")

    def describe(self, job):
        try:
            done = self.ctl("describe", job, "--output", "json")
            shown = json.loads(done.stdout)
            return shown.get("job", shown)
        except (subprocess.TimeoutExpired, ValueError):
            return None

    def stop(self):
        self.running = False
        with self.lock:
            for process in self.processes.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                process.wait()
        if self.mounted:
            subprocess.run(["umount", "-l", self.dir / "work"], check=False)


def total_step(job):
    return int((job or {}).get("progress", {}).get("total_step", 0))


def state_of(job):
    return (job or {}).get("state", "").removeprefix("JOB_STATE_")


class Chaos:
    def __init__(self, cluster, rng, kinds):
        self.cluster, self.rng, self.counts, self.kinds = cluster, rng, collections.Counter(), kinds
        self.recoveries, self.disturbed = [], []  # seconds; without and with another fault before the next step
        self.pending = None                       # (time of a student's SIGKILL, generation then, other faults since)

    def note(self, what):
        self.counts[what] += 1
        if self.pending:
            self.pending[2] += 1
        print(f"{time.strftime('%H:%M:%S')} fault {sum(self.counts.values())}: {what}", flush=True)

    def kill_student(self, job):
        self.cluster.signal(self.rng.choice(["s0", "s1"]), signal.SIGKILL)
        self.note("SIGKILL student")
        if not self.pending and state_of(job) == "RUNNING":
            self.pending = [time.monotonic(), int(job.get("generation", 0)), 0]

    def watch_recovery(self, job):
        if not self.pending or not job:
            return
        progress = job.get("progress", {})
        if state_of(job) == "SUCCEEDED":
            self.pending = None
        elif int(job.get("generation", 0)) > self.pending[1] and state_of(job) == "RUNNING" and \
                progress.get("phase") == "training" and progress.get("time", 0) > 0 and \
                time.time() - progress["time"] < time.monotonic() - self.pending[0]:
            (self.disturbed if self.pending[2] else self.recoveries).append(time.monotonic() - self.pending[0])
            self.pending = None

    def hit(self, job):
        rng, cluster = self.rng, self.cluster
        kind = rng.choice(self.kinds)
        if kind == "kill":
            what = rng.choice(["student", "student", "teacher", "coordinator", "two", "all"])
            if what == "student":
                return self.kill_student(job)
            names = {"teacher": [rng.choice(["t0", "t1"])], "coordinator": ["c"], "two": rng.sample(list(cluster.commands), 2),
                     "all": list(cluster.commands)}[what]
            self.note(f"SIGKILL {what}")
            for name in names:
                cluster.signal(name, signal.SIGKILL)
        elif kind == "term":
            names = rng.choice([[rng.choice(list(cluster.commands))], list(cluster.commands)])
            self.note(f"SIGTERM {'one' if len(names) == 1 else 'all'}")
            for name in names:
                cluster.signal(name, signal.SIGTERM)
        elif kind == "stop":
            names = rng.choice([[rng.choice(list(cluster.commands))], ["c"], list(cluster.commands)])
            seconds = rng.choice([1, 2, 6, 12, 30])
            self.note(f"SIGSTOP {'all' if len(names) > 1 else 'coordinator' if names == ['c'] else 'one'}")
            for name in names:
                cluster.signal(name, signal.SIGSTOP)
            time.sleep(seconds)
            for name in names:
                cluster.signal(name, signal.SIGCONT)
        elif kind == "tamper":
            self.tamper(job)
        elif kind == "fill":
            self.note("disk full")
            filler = cluster.dir / "work" / ".filler"
            try:
                with open(filler, "wb") as f:
                    while True:
                        f.write(b"\0" * (1 << 16))
            except OSError:
                pass
            time.sleep(rng.uniform(2, 10))
            filler.unlink(missing_ok=True)
        elif kind == "lock":
            self.note("foreign lock on the store")
            try:
                with sqlite3.connect(cluster.dir / "state" / "coordinator.db", timeout=5, isolation_level=None) as store:
                    store.execute("BEGIN IMMEDIATE")
                    time.sleep(rng.uniform(2, 15))
                    store.execute("ROLLBACK")
            except sqlite3.Error as error:
                print(f"  no lock taken: {error}")

    def tamper(self, job):
        """Damages the newest checkpoint, then kills whoever would notice last."""
        folder = self.cluster.dir / "work" / (job or {}).get("id", "none") / "checkpoints"
        found = sorted((p for p in folder.glob("stage-*") if p.is_dir()), key=lambda p: p.stat().st_mtime) if folder.exists() else []
        how = self.rng.choice(["truncate", "flip a bit", "remove"])
        self.note(f"checkpoint: {how}" if found else "checkpoint: none yet")
        try:
            if found and how == "remove":
                shutil.rmtree(found[-1])
            elif found:
                file = self.rng.choice([p for p in found[-1].iterdir() if p.stat().st_size])
                data = bytearray(file.read_bytes())
                if how == "truncate":
                    del data[len(data) // 2:]
                else:
                    data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
                file.write_bytes(data)
        except (OSError, IndexError) as error:
            print(f"  too late: {error}")
        for name in self.rng.choice([["s0"], ["s0", "s1"], list(self.cluster.commands)]):
            self.cluster.signal(name, signal.SIGKILL)


def run_job(cluster, chaos, faults_left, stuck_seconds):
    """Runs one job to its end; faults hit it while chaos is given. Returns (verdict, sha256 of the student)."""
    job_id = cluster.submit()
    last_step, moved = -1, time.monotonic()
    next_fault = time.monotonic() + (chaos.rng.uniform(0.5, 4) if chaos else 1e9)
    per_job = chaos.rng.randrange(4, 12) if chaos else 0
    while True:
        job = cluster.describe(job_id)
        if chaos:
            chaos.watch_recovery(job)
        if state_of(job) == "SUCCEEDED":
            file = pathlib.Path(job["artifacts"]["safetensors"])
            return "same", hashlib.sha256(file.read_bytes()).hexdigest()
        if state_of(job) in ("FAILED", "CANCELLED"):
            return f"failed: {job.get('reason')}", ""
        if total_step(job) != last_step:
            last_step, moved = total_step(job), time.monotonic()
        if time.monotonic() - moved > stuck_seconds:
            return f"stuck at step {last_step}: {(job or {}).get('reason')}", ""
        if chaos and per_job and faults_left() > 0 and time.monotonic() >= next_fault:
            per_job -= 1
            chaos.hit(job)
            moved = time.monotonic()
            next_fault = time.monotonic() + chaos.rng.uniform(0.3, 7)
        time.sleep(0.15)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="folder of the four programs")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of faults, separated by commas")
    parser.add_argument("--stuck", type=float, default=120, help="seconds without a step after which a job counts as stuck")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    args = parser.parse_args()
    kinds = args.only.split(",")
    if set(kinds) - set(KINDS):
        parser.error(f"--only knows {', '.join(KINDS)}")
    rng = random.Random(args.seed)
    folder = tempfile.mkdtemp(prefix="chaos.")
    cluster = Cluster(args.bin, folder, rng)
    bad = []
    try:
        if "fill" in kinds and not cluster.mounted:
            print("no tmpfs can be mounted here (not root): the disk is not filled")
            kinds.remove("fill")
        chaos = Chaos(cluster, rng, kinds)
        verdict, reference = run_job(cluster, None, lambda: 0, args.stuck)
        if verdict != "same":
            sys.exit(f"the undisturbed job already {verdict}")
        print(f"undisturbed: {reference}", flush=True)
        left = lambda: args.faults - sum(chaos.counts.values())
        jobs = 0
        while left() > 0:
            jobs += 1
            verdict, digest = run_job(cluster, chaos, left, args.stuck)
            if verdict == "same" and digest != reference:
                verdict = f"differs: {digest}"
            print(f"{time.strftime('%H:%M:%S')} job {jobs}: {verdict}", flush=True)
            if verdict != "same":
                bad.append(verdict)
                for name in cluster.commands:
                    print(f"---- {name}\n{cluster.log(name)}")
            if cluster.mounted:  # a small disk: the finished job makes room
                for old in (cluster.dir / "work").iterdir():
                    shutil.rmtree(old, ignore_errors=True) if verdict == "same" else None
    finally:
        cluster.stop()
        if args.keep or bad:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{jobs} jobs, {sum(chaos.counts.values())} faults, {len(bad)} bad")
    for what, count in sorted(chaos.counts.items()):
        print(f"  {count:4} {what}")
    print("exits:", ", ".join(f"{name}:{code} x{count}" for (name, code), count in sorted(cluster.exits.items(), key=str)))
    for label, seconds in (("nothing else hit meanwhile", chaos.recoveries), ("with further faults", chaos.disturbed)):
        if seconds:
            print(f"from a student's SIGKILL to the next training step, {label}: median {statistics.median(seconds):.1f} s, "
                  f"worst {max(seconds):.1f} s, n={len(seconds)}")
    for verdict in bad:
        print("BAD:", verdict)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
