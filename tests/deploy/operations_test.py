#!/usr/bin/env python3
"""Plays procedures of docs/operations.md against real processes.

    operations_test.py backup BINARIES     the coordinator's store is copied while a job runs, lost, restored; the job
                                           ends well
    operations_test.py rolling_restart BINARIES [OTHERS]   every process is replaced during one job, as in an upgrade;
                                           with the programs in OTHERS, if given, which may be of another version; the
                                           job ends well
    operations_test.py rotation BINARIES   certificates are renewed while a job runs; no process notices but by its
                                           metric
"""
import hashlib
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from operations_cluster import Cluster, job_text, skip, wait_for


def stages(job):
    return len(job.get("stages_done") or [])


def backup(binaries):
    if not shutil.which("sqlite3"): skip("no sqlite3: apt-get install sqlite3")
    with tempfile.TemporaryDirectory(prefix="distill-backup-") as folder, Cluster(binaries, folder) as cluster:
        store, copy = cluster.folder / "state/coordinator.db", cluster.folder / "coordinator.backup"
        cluster.start_coordinator()
        cluster.start_teacher("teacher-0")
        cluster.start_student("student-0")
        first = cluster.submit(job_text("first", 1, 2, 4), "first")
        cluster.wait_job(first)
        # No student: the copy surely knows the second job as one that waits.
        cluster.stop("student-0")
        second = cluster.submit(job_text("second", 1, 5, 400, checkpoint_every=5), "second")

        # As docs/operations.md says, while the coordinator runs.
        subprocess.run(["sqlite3", store, f".backup '{copy}'"], check=True)
        assert subprocess.run(["sqlite3", copy, "PRAGMA integrity_check"], check=True, capture_output=True, text=True).stdout.strip() == "ok"
        # The job goes past what the copy knows: a stage is committed, checkpoints are written. The coordinator's epoch
        # grows.
        cluster.start_student("student-0")
        wait_for("the first stage is committed", lambda: stages(cluster.describe(second)) >= 1)
        checkpoint = cluster.folder / "work" / second
        wait_for("the second stage has a checkpoint", lambda: len(list(checkpoint.rglob("manifest.json"))) >= 2)
        for _ in range(2):
            cluster.stop("coordinator")
            cluster.start_coordinator()
        wait_for("workers have met the newest coordinator", lambda: "registered with the coordinator again" in cluster.log("student-0")
                 and re.search(r"epoch=3\b", cluster.log("student-0")))

        # The machine's disk is lost. Stop, put the copy where the store was, without the old -wal and -shm files;
        # start.
        cluster.stop("coordinator", signal.SIGKILL)
        shutil.rmtree(store.parent)
        store.parent.mkdir()
        shutil.copy(copy, store)
        cluster.start_coordinator()
        assert "distill_coordinator_epoch 2" in cluster.metrics("coordinator"), "an epoch that the workers have seen before"
        found = cluster.describe(second)
        assert stages(found) == 0, f"the copy knows of no committed stage: {found}"
        # Workers ignore a coordinator that is older than the one they knew, and say so; restarted, they take it.
        wait_for("a worker says what to do", lambda: "restored from a copy, restart this worker" in cluster.log("student-0"))
        for name, start in (("teacher-0", cluster.start_teacher), ("student-0", cluster.start_student)):
            cluster.stop(name)
            start(name)
        ended = cluster.wait_job(second)
        assert stages(ended) == 2, f"both stages are committed: {ended}"
        assert (cluster.folder / "work" / second / "student.safetensors").stat().st_size > 0
        assert "that stage 1 is done; committing it again" in cluster.log("student-0"), "the copy did not know of the stage"
        assert "resuming from" in cluster.log("student-0"), "it went on from its checkpoint instead of starting over"
        assert cluster.describe(first)["state"].endswith("SUCCEEDED"), "what ended before the copy was made is still known"
    print("restored; the job went on from its checkpoint")


def rotation(binaries):
    def expiry(name):
        return float(re.search(r'^distill_tls_certificate_expiry_timestamp_seconds\{file="cert"\} (\S+)$', cluster.metrics(name), re.M).group(1))

    with tempfile.TemporaryDirectory(prefix="distill-rotation-") as folder, Cluster(binaries, folder, tls=True) as cluster:
        cluster.start_coordinator()
        for name in ("teacher-0", "teacher-1"): cluster.start_teacher(name)
        cluster.start_student("student-0")
        services = ("coordinator", "teacher-0", "teacher-1")
        before = {name: expiry(name) for name in services}
        job = cluster.submit(job_text("rotation", 1, 3, 100000))  # longer than the test; cancelled at its end
        wait_for("the job trains", lambda: stages(cluster.describe(job)) == 1)

        cluster.make_certs("--renew", "--days", "200", str(cluster.certs))
        assert expiry("coordinator") == before["coordinator"], "a running process keeps what it has read"
        for name in ("teacher-0", "teacher-1"):  # one after another: the job always has one
            cluster.stop(name)
            cluster.start_teacher(name)
            fleet = lambda: [w for w in cluster.ctl("fleet").stdout.splitlines() if name in w and "serving" in w]
            wait_for(f"{name} is back", fleet)
        cluster.stop("coordinator")
        cluster.start_coordinator()
        for name in services:
            assert expiry(name) < before[name] - 100 * 86400, f"{name} uses the new certificate, which is made for fewer days"
        step = lambda: int((cluster.describe(job).get("progress") or {}).get("step", 0))
        done = step()
        wait_for("the job goes on", lambda: step() > done + 10)
        cluster.ctl("cancel", job)
        ended = cluster.wait_job(job, "CANCELLED")
        assert int(ended.get("restarts", 0)) == 0, f"the student did not notice: {ended}"
    print("certificates renewed during a job")


def rolling_restart(binaries, others=None):
    with tempfile.TemporaryDirectory(prefix="distill-rolling-") as folder, Cluster(binaries, folder, tls=True) as cluster:
        def lines(*words):  # of the fleet's table
            return [line for line in cluster.ctl("fleet").stdout.splitlines() if all(word in line.split() for word in words)]

        step = lambda job: int((cluster.describe(job).get("progress") or {}).get("total_step", 0))
        teachers, students = ("teacher-0", "teacher-1"), ("student-0", "student-1")
        cluster.start_coordinator()
        for name in teachers: cluster.start_teacher(name)
        for name in students: cluster.start_student(name)
        # Long enough for all that is done to it, on a machine of any speed.
        first = cluster.wait_job(cluster.submit(job_text("measured", 2, 2, 20)))
        steps = max(60, int(first["progress"]["images_per_second"] / 64 * 12))
        text = job_text("rolling", 2, 5, steps, checkpoint_every=20)
        digest = lambda job: hashlib.sha256((cluster.folder / "work" / job / "student.safetensors").read_bytes()).hexdigest()
        undisturbed = cluster.submit(text)
        cluster.wait_job(undisturbed)
        job = cluster.submit(text)
        wait_for("the job trains", lambda: stages(cluster.describe(job)) == 1)
        cluster.binaries = pathlib.Path(others or binaries)

        def replaced(name, start):
            code, done = cluster.stop(name), step(job)
            assert code == 143, f"{name} ended with {code}: not in order\n{cluster.log(name)[-2000:]}"
            start()
            return done

        def running(after):
            found = cluster.describe(job)
            # Queued: its group is being formed again.
            assert found["state"].endswith(("RUNNING", "QUEUED")), f"the job should outlast the restarts: {found['state']} {found.get('reason')}"
            return int((found.get("progress") or {}).get("total_step", 0)) > after

        cluster.stop("coordinator")
        cluster.start_coordinator()
        for name in teachers: wait_for(f"{name} has registered again", lambda: lines(name, "serving"))
        for name in teachers:
            replaced(name, lambda: cluster.start_teacher(name))
            wait_for(f"{name} is back", lambda: lines(name, "serving"))
        assert int(cluster.describe(job).get("restarts", 0)) == 0, "students did not notice so far"
        for count, name in enumerate(students, 1):
            done = replaced(name, lambda: cluster.start_student(name))
            wait_for("the group is formed again", lambda: int(cluster.describe(job).get("restarts", 0)) == count)
            wait_for("the job goes on", lambda: running(done))
        ended = cluster.wait_job(job)
        assert int(ended["restarts"]) == 2, f"one for each student: {ended}"
        assert "lost" not in cluster.ctl("fleet").stdout
        assert others or digest(job) == digest(undisturbed), "the student should be that of an undisturbed job, bit for bit"
        assert (cluster.folder / "work" / job / "student.safetensors").stat().st_size == int(ended["artifacts"]["safetensors_bytes"])
    print(f"{steps} steps, five processes replaced, the job ended well")


if __name__ == "__main__":
    {"backup": backup, "rolling_restart": rolling_restart, "rotation": rotation}[sys.argv[1]](*sys.argv[2:])
