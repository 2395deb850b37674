#!/usr/bin/env python3
"""deploy/compose on a real Docker engine: a job through the CLI's container, teachers scaled and containers killed
meanwhile, metrics in a real Prometheus, what users see on bad days, and nothing left behind.

    compose_test.py --source DIR --build DIR

The images are packaged from the build tree. Where no engine runs, one is started with all its files in the build folder
and stopped at the end. Exit code 77: skipped, with the reason."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

SKIP = 77
NETWORK = "distill-test.internal"
IMAGES = "distillery-test"
JOB = """
name: composed
seed: 7
students: 2
threads: 1
device: cpu
batch_size: 64
student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}
teacher: fashion
data: {format: idx, path: fashion-mnist, train_limit: 2048, test_limit: 512}
checkpoint: {every: 20}
log_every: 5
stages:
  - {name: mimic, trainable: [conv1, bn1, layer1], steps: 10, losses: [{type: l2, student: layer1, teacher: layer1}]}
  - name: whole
    steps: 400
    losses: [{type: cross_entropy, weight: 0.1}, {type: kd, weight: 0.9}, {type: cwd, student: layer3, teacher: layer3}]
"""


def say(text):
    print(f"==> {text}", flush=True)


def skip(reason):
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(SKIP)


class Failure(Exception):
    pass


def run(argv, check=True, env=None, timeout=300, **options):
    """Runs a command; its output is kept and shown when it fails."""
    done = subprocess.run(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(argv)} gave {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done


def expect(condition, what):
    if not condition:
        raise Failure(what)
    print(f"  ok: {what}", flush=True)


def wait_for(what, condition, seconds=120):
    """Polls until the condition gives something true, which is returned."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            print(f"  ok: {what}", flush=True)
            return value
        if time.monotonic() > end:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(0.3)


@contextlib.contextmanager
def engine(folder):
    """An engine to use: the one that runs, or one of our own."""
    if run(["docker", "info"], check=False).returncode == 0:
        say("using the Docker engine that runs")
        yield
        return
    # Unix sockets have short paths, build folders may have long ones.
    runtime = tempfile.mkdtemp(prefix="distill-engine-")
    data = os.path.join(folder, "engine")
    shutil.rmtree(data, ignore_errors=True)
    sock = f"unix://{runtime}/sock"
    say("starting a Docker engine")
    with open(os.path.join(folder, "dockerd.log"), "w", encoding="utf-8") as log:
        # In a session of its own: Ctrl-C at the terminal must not stop it before the clean-up.
        daemon = subprocess.Popen(["dockerd", "--host", sock, "--data-root", data, "--exec-root", f"{runtime}/exec",
                                   "--pidfile", f"{runtime}/pid", "--bridge", "none"], stdout=log, stderr=log, start_new_session=True)
    try:
        os.environ["DOCKER_HOST"] = sock
        end = time.monotonic() + 60
        while run(["docker", "info"], check=False).returncode != 0:
            if daemon.poll() is not None or time.monotonic() > end:
                with open(os.path.join(folder, "dockerd.log"), encoding="utf-8") as log:
                    tail = "".join(log.readlines()[-8:])
                skip(f"dockerd cannot run on this machine:\n{tail}")
            time.sleep(0.3)
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(runtime, ignore_errors=True)


class Compose:
    """One project of deploy/compose with the settings of `env`."""

    def __init__(self, source, env):
        self.env = dict(os.environ, **env)
        self.folder = os.path.join(source, "deploy/compose")
        tool = ["docker", "compose"] if run(["docker", "compose", "version"], check=False).returncode == 0 else ["docker-compose"]
        self.tool = tool + ["-f", "docker-compose.yml", "-f", os.path.join(source, "tests/deploy/compose_override.yml")]

    def __call__(self, *arguments, check=True, timeout=300, **settings):
        return run(self.tool + list(arguments), check=check, env=dict(self.env, **settings), cwd=self.folder, timeout=timeout)

    def ctl(self, *arguments, check=True):
        """distillctl in a container of its own."""
        return self("run", "--rm", "-T", "ctl", *arguments, check=check)

    def describe(self, job):
        done = self("exec", "-T", "coordinator", "distillctl", "describe", job, "--output", "json", check=False)
        if done.returncode != 0:
            return {}
        answer = json.loads(done.stdout)
        return answer.get("job", answer)

    def containers(self, service):
        """What the engine knows of the service's containers, newest first."""
        ids = run(["docker", "ps", "-aq", "--no-trunc", "--filter", f"label=com.docker.compose.project={self.env['COMPOSE_PROJECT_NAME']}",
                   "--filter", f"label=com.docker.compose.service={service}", "--filter", "label=com.docker.compose.oneoff=False"]).stdout.split()
        return json.loads(run(["docker", "inspect"] + ids).stdout) if ids else []

    def healthy(self, service, count):
        states = [c["State"].get("Health", {}).get("Status") for c in self.containers(service) if c["State"]["Running"]]
        return states == ["healthy"] * count

    def port(self, service, port):
        return int(self("port", service, str(port)).stdout.strip().rsplit(":", 1)[1])


def progress(job):
    return (job.get("progress") or {}).get("stage", -1), int((job.get("progress") or {}).get("step", 0))


def query(port, expression):
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=10) as answer:
        return {json.dumps(r["metric"], sort_keys=True): float(r["value"][1]) for r in json.load(answer)["data"]["result"]}


def value(port, expression):
    return next(iter(query(port, expression).values()), 0.0)


def download(compose, work, file, token=None):
    """A file of the students' volume, through the coordinator."""
    if token is None:
        with open(f"{work}/secrets/token", encoding="ascii") as text:
            token = text.read().strip()
    url = f"https://127.0.0.1:{compose.port('coordinator', 8080)}/files/{file.removeprefix('/work/')}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cafile=f"{work}/secrets/ca.crt")) as answer:
        return answer.read()


def main_day(compose, work, build):
    say("up: coordinator, one teacher, two students, Prometheus")
    compose("up", "-d", "--scale", "teacher=1", "--scale", "student=2")
    for service, count in (("coordinator", 1), ("teacher", 1), ("student", 2)):
        wait_for(f"{count} {service} healthy", lambda s=service, c=count: compose.healthy(s, c))

    say("how the containers are confined")
    for service in ("coordinator", "teacher", "student"):
        container = compose.containers(service)[0]
        name = container["Id"]
        inside = lambda *argv, n=name: run(["docker", "exec", n, *argv], check=False)
        expect(inside("id", "-u").stdout.strip() == "10001", f"{service} runs as user 10001")
        expect(inside("touch", "/usr/local/x").returncode != 0, f"{service} cannot write to its root")
        expect(inside("sh", "-c", "command -v cc gcc g++ c++ ld python3 pip").stdout == "", f"{service} holds no compiler and no Python")
        expect(container["Config"]["Labels"].get("org.opencontainers.image.title", "").startswith("distillery"), f"{service} is labelled")
        published = [b["HostIp"] for bindings in container["NetworkSettings"]["Ports"].values() for b in bindings or []]
        expect(all(ip == "127.0.0.1" for ip in published), f"{service} is published on loopback alone: {published}")

    say("a job, submitted through the CLI's container")
    with open(os.path.join(work, "jobs/job.yaml"), "w", encoding="utf-8") as file:
        file.write(JOB)
    first = json.loads(compose.ctl("submit", "/jobs/job.yaml", "--set", "stages.1.steps=30", "--output", "json", "--watch").stdout)
    expect(first["state"] == "JOB_STATE_SUCCEEDED", f"a short one succeeds: {first.get('reason')}")
    # The next one must outlast the scaling and killing below, on a machine of any speed.
    steps = max(400, int(first["progress"]["images_per_second"] / 64 * 60))
    job = json.loads(compose.ctl("submit", "/jobs/job.yaml", "--set", f"stages.1.steps={steps}", "--request-id", "composed",
                                 "--output", "json").stdout)["job_id"]
    print(f"  a longer one has {steps} steps", flush=True)
    fleet = run([os.path.join(build, "bin/distillctl"), "fleet", "--coordinator", f"127.0.0.1:{compose.port('coordinator', 7070)}",
                 "--tls-ca", f"{work}/secrets/ca.crt", "--token-file", f"{work}/secrets/token"]).stdout
    expect(fleet.count("student") == 2, "distillctl on the host sees the fleet through the published port")
    wait_for("the second stage runs", lambda: progress(compose.describe(job))[0] == 1)

    say("teachers are scaled from 1 to 3 while it runs")
    compose("up", "-d", "--no-recreate", "--scale", "teacher=3", "--scale", "student=2")
    wait_for("3 teachers healthy", lambda: compose.healthy("teacher", 3))
    prometheus = compose.port("prometheus", 9090)
    wait_for("the new teachers serve the job, says Prometheus",
             lambda: len(query(prometheus, "distill_teacher_images_total > 0")) == 3)
    expect(compose.describe(job).get("state") == "JOB_STATE_RUNNING", "the job still runs")

    say("a teacher is killed, and a student's process dies")
    run(["docker", "kill", compose.containers("teacher")[-1]["Id"]])
    student = compose.containers("student")[0]
    os.kill(student["State"]["Pid"], signal.SIGKILL)
    wait_for("the engine starts the student again",
             lambda: run(["docker", "inspect", "-f", "{{.RestartCount}}", student["Id"]]).stdout.strip() == "1")
    end = wait_for("the job ends", lambda: (lambda j: j if j.get("state", "") in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED") else None)(
        compose.describe(job)), 400)
    expect(end["state"] == "JOB_STATE_SUCCEEDED", f"it succeeded: {end.get('reason')}")
    expect(end.get("restarts", 0) >= 1, "the group of ranks was formed again after the student's death")
    file = end["artifacts"]["safetensors"]
    listed = compose("exec", "-T", "student", "stat", "-c", "%s", file).stdout.strip()
    expect(listed == end["artifacts"]["safetensors_bytes"], f"the student's weights are in the work volume: {file}")
    expect(len(download(compose, work, file)) == int(listed), "the status page gives them to who has the token")
    try:
        download(compose, work, file, token="guess")
        raise Failure("the status page gave a file for a wrong token")
    except urllib.error.HTTPError as error:
        expect(error.code == 401, "and to nobody else")

    say("what Prometheus has scraped")
    for name, count in (("distill-coordinator", 1), ("distill-teacher", 2), ("distill-student", 2)):
        wait_for(f"{count} of {name} up", lambda n=name, c=count: len(query(prometheus, f'up{{job="{n}"}} == 1')) == c)
    wait_for("steps of the students", lambda: value(prometheus, "sum(distill_student_steps_total)") > 0, 30)
    wait_for("two jobs that succeeded", lambda: value(prometheus, 'distill_coordinator_jobs_ended_total{state="succeeded"}') == 2, 30)
    with urllib.request.urlopen(f"http://127.0.0.1:{prometheus}/api/v1/rules", timeout=10) as answer:
        rules = [r for g in json.load(answer)["data"]["groups"] for r in g["rules"]]
    expect(rules and not [r for r in rules if r["health"] == "err"], f"{len(rules)} rules, none with an error")


def rotation(compose, source, work):
    say("certificates are renewed, services restarted")
    address = f"127.0.0.1:{compose.port('coordinator', 7070)}"

    def fingerprint(command):
        return run(["sh", "-c", f"{command} | openssl x509 -noout -fingerprint -sha256"]).stdout

    def shown():
        return fingerprint(f"openssl s_client -alpn h2 -connect {address} </dev/null 2>/dev/null")

    before = shown()
    run([f"{source}/scripts/make_certs.sh", "--renew", "--containers", f"{work}/secrets"])
    compose("restart", "coordinator", "teacher")
    address = f"127.0.0.1:{compose.port('coordinator', 7070)}"
    for service, count in (("coordinator", 1), ("teacher", 3), ("student", 2)):
        wait_for(f"{count} {service} healthy", lambda s=service, c=count: compose.healthy(s, c))
    expect(shown() == fingerprint(f"cat {work}/secrets/coordinator/tls.crt") != before, "the coordinator shows its new certificate")
    job = json.loads(compose.ctl("submit", "/jobs/job.yaml", "--set", "stages.1.steps=10", "--output", "json").stdout)["job_id"]
    done = compose.ctl("watch", job)
    expect("succeeded" in done.stdout, "a job runs between renewed teachers and students that were not restarted")


def ended(compose, service, exit_code, message):
    """The service's container gives up with this code, `ps` shows it, and the logs hold the message."""
    def gave_up():
        states = [c for c in compose.containers(service) if c["State"]["Status"] == "exited" and c["RestartCount"] > 0]
        return states and states[0]
    container = wait_for(f"{service} gives up", gave_up, 90)
    expect(container["State"]["ExitCode"] == exit_code, f"with exit code {exit_code}")
    expect(container["RestartCount"] <= 2, f"after {container['RestartCount']} restarts, not in an endless loop")
    shown = compose("ps", "-a").stdout
    expect(f"Exit {exit_code}" in shown or f"Exited ({exit_code})" in shown, f"ps shows {service} with exit code {exit_code}")
    logs = compose("logs", "--no-color", service).stdout
    expect(message in logs, f"its log says: {message}")


def bad_days(compose, work):
    secrets = os.path.join(work, "secrets")

    say("bad day: a secret is missing")
    shutil.copytree(secrets, os.path.join(work, "no-token"))
    os.remove(os.path.join(work, "no-token/token"))
    done = compose("up", "-d", "--no-deps", "teacher", check=False, DISTILL_SECRETS=f"{work}/no-token")
    expect(done.returncode != 0 and "no-token/token" in done.stdout + done.stderr, "up fails and names the file")
    expect(not os.path.exists(f"{work}/no-token/token"), "nothing was made in its place")

    say("bad day: the student has another token")
    shutil.copytree(secrets, os.path.join(work, "wrong-token"))
    with open(os.path.join(work, "wrong-token/token"), "w", encoding="ascii") as file:
        file.write("0123456789abcdef\n")
    os.chown(file.name, 10001, 10001)
    compose("up", "-d", "--no-deps", "--scale", "student=1", "student", DISTILL_SECRETS=f"{work}/wrong-token")
    ended(compose, "student", 8, "the token is wrong; give --token-file")

    say("bad day: the teacher's model is not there")
    compose("up", "-d", "--no-deps", "--scale", "teacher=1", "teacher", DISTILL_MODEL="fashion=/models/absent.safetensors")
    ended(compose, "teacher", 42, "/models/absent.safetensors: No such file")

    say("bad day: the state volume cannot be written")
    done = run(["docker", "run", "--rm", "--read-only", "--tmpfs", "/var/lib/distill:ro,uid=10001", f"{IMAGES}/coordinator:cpu"], check=False)
    expect(done.returncode in (42, 74), f"the coordinator ends with {done.returncode}")
    expect("/var/lib/distill" in done.stderr + done.stdout, "and names the folder")

    say("bad day: the data folder is not there, or empty")
    done = compose("up", "-d", "--no-deps", "--scale", "student=1", "student", check=False, DISTILL_DATA=f"{work}/absent")
    expect(done.returncode != 0 and f"{work}/absent" in done.stdout + done.stderr, "up fails and names the folder")
    os.mkdir(os.path.join(work, "empty"))
    compose("up", "-d", "--scale", "teacher=1", "--scale", "student=2", DISTILL_DATA=f"{work}/empty")
    wait_for("students healthy", lambda: compose.healthy("student", 2))
    wait_for("teacher healthy", lambda: compose.healthy("teacher", 1))
    done = compose.ctl("submit", "/jobs/job.yaml", "--watch", check=False)
    expect(done.returncode == 4, f"the job fails (exit code {done.returncode})")
    expect("/data/fashion-mnist" in done.stdout + done.stderr, "its reason names the folder")

    say("bad day: a published port is in use")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = compose("up", "-d", "coordinator", check=False, DISTILL_PORT=str(port))
        expect(done.returncode != 0 and str(port) in done.stdout + done.stderr and "in use" in done.stdout + done.stderr,
               "up fails and names the port")


def left_over(project):
    label = ["--filter", f"label=com.docker.compose.project={project}"]
    return (run(["docker", "ps", "-aq"] + label).stdout + run(["docker", "network", "ls", "-q"] + label).stdout +
            run(["docker", "volume", "ls", "-q"] + label).stdout).split()


def build_images(source, build, work):
    say("packaging the images from the build tree")
    tree = os.path.join(work, "tree")
    run(["cmake", "--install", build, "--component", "runtime", "--prefix", tree, "--strip"])
    print(run([f"{source}/scripts/images.sh", "--prebuilt", tree, "--name", IMAGES], timeout=600).stdout, end="")
    shutil.rmtree(tree)
    context = os.path.join(work, "prometheus")
    os.mkdir(context)
    shutil.copy(os.path.join(source, "build/tools/usr/bin/prometheus"), context)
    base = run([f"{source}/scripts/base_image.sh"]).stdout.strip()
    run(["docker", "build", "-q", "-f", f"{source}/tests/deploy/prometheus.Dockerfile", "--build-arg", f"BASE={base}",
         "-t", f"{IMAGES}/prometheus:debian", context])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--build", required=True)
    options = parser.parse_args()
    source, build = options.source, options.build
    if os.geteuid() != 0:
        skip("a Docker engine and debootstrap need root")
    for program in ("docker", "dockerd", "debootstrap"):
        if shutil.which(program) is None:
            skip(f"{program} is not installed; scripts/setup.sh --containers installs it")
    if shutil.which("docker-compose") is None and run(["docker", "compose", "version"], check=False).returncode != 0:
        skip("neither docker compose nor docker-compose is installed; scripts/setup.sh --containers installs one")
    if not os.path.exists("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"):
        skip("the package dataset-fashion-mnist is not installed")

    work = os.path.join(build, "compose-test")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(os.path.join(work, "jobs"))
    project = f"distill-test-{os.getpid()}"
    failed = None
    with engine(work):
        try:
            build_images(source, build, work)
        except Failure as error:
            print(f"FAILED: {error}", flush=True)
            sys.exit(1)
        run([f"{source}/scripts/make_certs.sh", "--containers", f"{work}/secrets", "coordinator", f"teacher=*.{NETWORK}"])
        compose = Compose(source, {
            "COMPOSE_PROJECT_NAME": project, "COMPOSE_PROFILES": "cpu", "DISTILL_IMAGES": IMAGES, "DISTILL_NETWORK": NETWORK,
            "DISTILL_SECRETS": f"{work}/secrets", "DISTILL_JOBS": f"{work}/jobs", "DISTILL_RESTART": "on-failure:2",
            # 0: ports that the kernel chooses
            "DISTILL_PORT": "0", "DISTILL_HTTP_PORT": "0", "PROMETHEUS_PORT": "0", "GRAFANA_PORT": "0"})
        try:
            main_day(compose, work, build)
            rotation(compose, source, work)
            bad_days(compose, work)
        except (Failure, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            failed = error
            print(f"FAILED: {error}", flush=True)
            print(compose("ps", "-a", check=False).stdout, compose("logs", "--no-color", "--tail", "40", check=False).stdout, flush=True)
        finally:
            say("down")
            compose("down", "-v", "--remove-orphans", check=False)
            remains = left_over(project)
            images = run(["docker", "images", "-q", f"{IMAGES}/*"]).stdout.split()
            run(["docker", "rmi", "-f", *sorted(set(images))], check=False)
    shutil.rmtree(work, ignore_errors=failed is not None)
    if failed is None and remains:
        failed = f"down -v left {remains}"
        print(f"FAILED: {failed}", flush=True)
    if failed is not None:
        sys.exit(1)
    say("down left nothing; all passed")


if __name__ == "__main__":
    main()
