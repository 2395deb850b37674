"""A cluster of real processes on loopback, with TLS, token and Prometheus if asked for. For the tests of monitoring and
operations."""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")
SKIP = 77  # CTest: skipped


def skip(reason):
    print(f"SKIPPED: {reason}")
    sys.exit(SKIP)


def tool(name):
    """Prometheus' programs, where scripts/setup.sh unpacks them or on the PATH."""
    import shutil
    unpacked = SOURCE / "build/tools/usr/bin" / name
    found = str(unpacked) if unpacked.exists() else shutil.which(name)
    return found or skip(f"no {name}: scripts/setup.sh puts it into build/tools")


def wait_for(what, condition, seconds=180):
    """The first true value of `condition`, which may raise OSError meanwhile."""
    end = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except OSError as error:
            value, last = None, error
        else:
            last = value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what} (last: {last})")
        time.sleep(0.1)


class Cluster:
    """Processes are started by start_*() and ended by close(). Coordinators keep the port of the first one."""

    def __init__(self, binaries, folder, tls=False):
        self.binaries, self.folder = pathlib.Path(binaries), pathlib.Path(folder)
        for program in ("distill-coordinator", "distill-teacher", "distill-student", "distillctl"):
            if not (self.binaries / program).exists():
                sys.exit(f"{self.binaries / program} is not built")
        if not DATA.exists():
            skip(f"no {DATA}: apt-get install dataset-fashion-mnist")
        self.processes, self.ready = {}, {}
        self.address = None
        self.certs = self.folder / "certs" if tls else None
        if tls:
            self.make_certs("--days", "365", str(self.certs), "coordinator", "teacher")

    def make_certs(self, *arguments):
        subprocess.run([SOURCE / "scripts/make_certs.sh", *arguments], check=True, capture_output=True, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name in reversed(list(self.processes)):
            self.stop(name, signal.SIGKILL)

    def security(self, server=None):
        if self.certs is None:
            return []
        flags = ["--tls-ca", self.certs / "ca.crt", "--token-file", self.certs / "token"]
        return flags + (["--tls-cert", self.certs / server / "tls.crt", "--tls-key", self.certs / server / "tls.key"] if server else [])

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def start(self, name, program, *flags):
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        command = [str(x) for x in (self.binaries / program, "--ready-file", ready, "--http-listen", "127.0.0.1:0", *flags)]
        with open(self.folder / f"{name}.log", "a") as log:
            process = self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
        def up():
            if process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}:\n{self.log(name)[-3000:]}")
            return ready.exists()
        wait_for(f"{name} is ready", up)
        self.ready[name] = dict(line.split("=", 1) for line in ready.read_text().splitlines())

    def start_coordinator(self, *flags, state="state"):
        self.start("coordinator", "distill-coordinator", "--listen", self.address or "127.0.0.1:0", "--state-dir", self.folder / state,
                   *self.security("coordinator"), *flags)
        self.address = self.ready["coordinator"]["address"]

    def start_teacher(self, name, *flags):
        self.start(name, "distill-teacher", "--id", name, "--threads", "1", "--coordinator", self.address, "--model",
                   f"fashion={SOURCE}/examples/teachers/fashion-resnet20.safetensors", *self.security("teacher"), *flags)

    def start_student(self, name, *flags):
        self.start(name, "distill-student", "--id", name, "--coordinator", self.address, "--data-root", DATA.parent,
                   "--work-dir", self.folder / "work", *self.security(), *flags)

    def stop(self, name, number=signal.SIGTERM):
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not stop:\n{self.log(name)[-3000:]}") from None

    def ctl(self, *arguments, check=True):
        result = subprocess.run([str(x) for x in (self.binaries / "distillctl", "--coordinator", self.address, *self.security(), *arguments)],
                                capture_output=True, text=True, timeout=120)
        if check and result.returncode != 0:
            raise AssertionError(f"distillctl {' '.join(map(str, arguments))}: {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def submit(self, text, name="job"):
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        return self.ctl("submit", path, "-q").stdout.strip()

    def describe(self, job):
        found = json.loads(self.ctl("describe", job, "-o", "json").stdout)
        return found.get("job", found)

    def wait_job(self, job, state="SUCCEEDED", seconds=400):
        def there():
            found = self.describe(job)
            if found["state"].endswith("FAILED") and state != "FAILED":
                raise AssertionError(f"the job failed: {found.get('reason')}")
            at.update(found.get("progress") or {})
            return found if found["state"].endswith(state) else None
        at = {}  # shown if it takes too long
        try:
            return wait_for(f"job {job} is {state}", there, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; progress: {at}") from None

    def metrics(self, name):
        with urllib.request.urlopen(f"http://{self.ready[name]['http']}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def start_prometheus(self, targets, interval="1s"):
        """`targets`: job name -> names of processes. Returns a Prometheus for queries; uses the repository's rules."""
        config = {"global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
                  "rule_files": [str(SOURCE / "deploy/prometheus/rules/*.yml")],
                  "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [self.ready[name]["http"] for name in names]}]}
                                     for job, names in targets.items()]}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        log = self.folder / "prometheus.log"
        with open(log, "w") as out:
            self.processes["prometheus"] = subprocess.Popen(
                [tool("prometheus"), f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/tsdb",
                 "--web.listen-address=127.0.0.1:0"], stdout=out, stderr=out)
        listening = re.compile(r'msg="Listening on" address=(\S+)')
        address = wait_for("Prometheus listens", lambda: listening.search(log.read_text())).group(1)
        server = Prometheus(f"http://{address}")
        wait_for("Prometheus is ready", lambda: server.get("/-/ready", raw=True))
        return server


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url):
        self.url = url

    def get(self, path, raw=False, **parameters):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=20) as answer:
            text = answer.read().decode()
        return text if raw else json.loads(text)["data"]

    def query(self, expr, at=None):
        return self.get("/api/v1/query", query=expr, **({"time": at} if at else {}))["result"]

    def range(self, expr, start, end, step):
        return self.get("/api/v1/query_range", query=expr, start=start, end=end, step=step)["result"]


def job_text(name, students, mimic, whole, checkpoint_every=0, extra=""):
    """A short job over Fashion-MNIST: a stage that mimics features, then one with labels, logits and features."""
    return f"""name: {name}
seed: 7
students: {students}
threads: 1
batch_size: 64
student: {{arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}}
teacher: fashion
data: {{format: idx, path: fashion-mnist, train_size: 60000, test_limit: 512}}
checkpoint: {{every: {checkpoint_every}}}
log_every: 5
{extra}
stages:
  - name: mimic
    trainable: [conv1, bn1, layer1]
    steps: {mimic}
    losses:
      - {{type: l2, student: layer1, teacher: layer1, adapter: auto}}
  - name: whole
    trainable: ["**"]
    steps: {whole}
    losses:
      - {{type: cross_entropy, weight: 0.1}}
      - {{type: kd, weight: 0.9, temperature: 4}}
      - {{type: cwd, weight: 2, temperature: 1, student: layer2, teacher: layer2, adapter: auto}}
"""
