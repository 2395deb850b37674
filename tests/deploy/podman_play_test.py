"""Plays deploy/kubernetes/rendered/dev-single-node.yaml with `podman kube play` and runs a job through the pods, with
TLS and token.

    podman_play_test.py BUILD-FOLDER [--tree INSTALLED-TREE] [--keep]

Exit code 77 with the reason where this cannot be done (no root, no podman). Everything lives in a folder of its own:
images, containers, volumes, network. Podman 4.3 of Debian 12 knows neither StatefulSets nor Services, so played() turns
the workloads into pods with fixed addresses and says what it leaves out.
"""

import argparse
import base64
import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

import kubernetes_checks as checks

SKIPPED = 77
MODEL = checks.ROOT / "examples/teachers/fashion-resnet20.safetensors"
DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")
NETWORK = "distillery"
# Of volumes; in a cluster fsGroup lets the user of the images write.
OWNER = {"volume.podman.io/uid": "10001", "volume.podman.io/gid": "10001"}
# What podman 4.3 cannot play. Of these, Services and the ServiceAccount are replaced by fixed addresses and left out;
# the others only matter to a cluster and are covered by kubernetes_test.py.
LEFT_OUT = {"Namespace", "ServiceAccount", "Service", "NetworkPolicy", "PodDisruptionBudget"}


def say(text):
    print(f"==> {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def skip(reason):
    print(f"SKIPPED: {reason}", file=sys.stderr)
    sys.exit(SKIPPED)


def run(*command, check=True, timeout=900, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done


def wait_for(what, condition, seconds):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not after {seconds} s")
        time.sleep(0.5)


class Podman:
    """An engine of its own: storage, networks and settings are below `folder`, state is below the short `run`."""

    def __init__(self, folder, run):
        self.folder = folder
        for name in ("root", "networks", "bin", "tmp"):
            (folder / name).mkdir()
        # crun refuses cgroups of versions 1 and 2 side by side; runc takes them.
        runtime = "crun" if pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists() else "runc"
        if not shutil.which(runtime):
            skip(f"{runtime} is not installed: scripts/setup.sh --containers")
        # Where raising limits is not permitted (inside a container), podman's defaults cannot be set.
        (folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\npids_limit = 0\nlog_driver = "k8s-file"\n'
            f'[engine]\nruntime = "{runtime}"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n[network]\nnetwork_backend = "netavark"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "TMPDIR": str(folder / "tmp"),
            "BUILDAH_FORMAT": "docker",
        }
        self.command = [
            "podman",
            "--root",
            folder / "root",
            "--runroot",
            run / "run",
            "--tmpdir",
            run / "libpod",
            "--network-config-dir",
            folder / "networks",
        ]
        # scripts/images.sh speaks to `docker`; podman understands the same commands.
        docker = folder / "bin/docker"
        docker.write_text(f'#!/bin/sh\nexec {" ".join(map(str, self.command))} "$@"\n')
        docker.chmod(0o755)
        self.docker_environment = {**self.environment, "PATH": f'{folder / "bin"}:{os.environ["PATH"]}'}

    def __call__(self, *arguments, **options):
        return run(*self.command, *arguments, env=self.environment, **options)

    def lines(self, *arguments):
        return self(*arguments).stdout.split()


def secret(name, values):
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def claim_for(name):
    """A small volume that user 10001 may write to."""
    metadata = {"name": name, "annotations": dict(OWNER)}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }


def played(manifests, addresses):
    """The pods that stand for the workloads, and the documents that they read. `addresses`: pod name -> address.

    Changed: StatefulSet and Deployment -> pods; what the cluster fills in (names, addresses) is written out; names that
    DNS would answer come from hostAliases; images are local; emptyDir -> a volume for each pod; probes are left to this
    test, because podman runs them inside the container with curl, which the images do not have."""
    documents, pods = [], []
    hosts = {
        address: [f'{address.replace(".", "-")}.teacher.distillery.svc']
        for pod, address in addresses.items()
        if pod.startswith("teacher-")
    }
    hosts[addresses["coordinator-0"]] = ["coordinator"]
    for document in copy.deepcopy(manifests.documents):
        kind = document["kind"]
        document["metadata"].pop("namespace", None)
        if kind in ("ConfigMap", "PersistentVolumeClaim"):
            documents.append(document)
        elif kind in ("StatefulSet", "Deployment"):
            for claim in document["spec"].get("volumeClaimTemplates", []):
                documents.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim})
                document["spec"]["template"]["spec"]["volumes"].append(
                    {
                        "name": claim["metadata"]["name"],
                        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
                    }
                )
            for index in range(document["spec"]["replicas"]):
                pod, claims = make_pod(document, f'{document["metadata"]["name"]}-{index}', addresses, hosts)
                pods.append(pod)
                documents += claims
        elif kind == "Pod":
            continue  # the loader: this test copies files into the volumes itself
        elif kind not in LEFT_OUT:
            raise RuntimeError(f"{kind} {document['metadata']['name']}: played() does not know what to do with it")
    for claim in documents:
        if claim["kind"] == "PersistentVolumeClaim":
            claim["metadata"]["annotations"] = dict(OWNER)
    return documents, pods


def make_pod(workload, name, addresses, hosts):
    spec = copy.deepcopy(workload["spec"]["template"]["spec"])
    values = {"metadata.name": name, "metadata.namespace": "distillery", "status.podIP": addresses[name]}
    for container in spec.get("initContainers", []) + spec["containers"]:
        container["image"] = f'localhost/{container["image"]}'
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            container.pop(probe, None)
        container.pop("ports", None)  # podman 4.3 would publish them on the host
        for variable in container.get("env", []):
            source = variable.pop("valueFrom", None)
            if source:
                variable["value"] = values[source["fieldRef"]["fieldPath"]]
    for key in ("topologySpreadConstraints", "serviceAccountName", "enableServiceLinks"):
        spec.pop(key, None)
    claims = []
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["secret"]["optional"] = False  # the default; podman 4.3 crashes without it
        if volume.pop("emptyDir", None) is not None:
            # Podman 4.3 shares emptyDirs of one name between pods, and root owns them.
            claim = f'{name}-{volume["name"]}'
            claims.append(claim_for(claim))
            volume["persistentVolumeClaim"] = {"claimName": claim}
    spec["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in hosts.items()]
    # "always": podman removes the other kind, "once", when it has ended, and now and then trips over it.
    metadata = {
        "name": name,
        "labels": workload["spec"]["template"]["metadata"]["labels"],
        "annotations": {"io.podman.annotations.init.container.type": "always"},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, claims


class Cluster:
    def __init__(self, podman, folder):
        self.podman, self.folder = podman, folder
        podman("network", "create", "--disable-dns", NETWORK)
        gateway = json.loads(podman("network", "inspect", NETWORK).stdout)[0]["subnets"][0]["gateway"]
        network = gateway.rsplit(".", 1)[0]
        manifests = checks.Manifests.rendered("dev-single-node")
        names = [
            f'{w["metadata"]["name"]}-{i}'
            for w in manifests.of("StatefulSet", "Deployment")
            for i in range(w["spec"]["replicas"])
        ]
        self.addresses = {name: f"{network}.{10 + i}" for i, name in enumerate(sorted(names))}
        self.documents, self.pods = played(manifests, self.addresses)
        self.files = []

    def play(self, name, documents, *flags):
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        self.files.append(file)
        self.podman("kube", "play", *flags, file)

    def start(self, secrets):
        # First what the pods read; then its content; then the pods, the coordinator first, each at its address.
        volumes = [d for d in self.documents if d["kind"] == "PersistentVolumeClaim"]
        self.play("volumes", volumes)
        self.make_secrets(secrets)
        shutil.copy(MODEL, self.volume("models") / "fashion.safetensors")
        shutil.copytree(DATA, self.volume("data") / "fashion-mnist")
        for pod in sorted(self.pods, key=lambda p: p["metadata"]["name"]):
            name = pod["metadata"]["name"]
            self.play(name, self.configs() + [pod], "--network", NETWORK, "--ip", self.addresses[name])

    def make_secrets(self, secrets):
        version = tuple(int(n) for n in self.podman("version", "--format", "{{.Client.Version}}").stdout.split(".")[:2])
        if version >= (4, 4):
            self.play("secrets", secrets)
            return
        # Podman before 4.4 does not decode what a played Secret holds. It stores Secrets as documents, so one is stored
        # whose values are plain already.
        for document in secrets:
            plain = {
                **document,
                "data": {key: base64.b64decode(value).decode() for key, value in document["data"].items()},
            }
            file = self.folder / "plain-secret.yaml"
            file.write_text(yaml.safe_dump(plain))
            self.podman("secret", "create", document["metadata"]["name"], file)

    def configs(self):
        return [d for d in self.documents if d["kind"] == "ConfigMap"]

    def state(self, container):
        return json.loads(self.podman("container", "inspect", container).stdout)[0]["State"]

    def volume(self, name):
        return pathlib.Path(json.loads(self.podman("volume", "inspect", name).stdout)[0]["Mountpoint"])

    def get(self, pod, path):
        try:
            with urllib.request.urlopen(f"http://{self.addresses[pod]}:8080{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self):
        """What the probes of the manifests would ask."""
        for pod in self.addresses:
            wait_for(f"/readyz of {pod}", lambda: self.get(pod, "/readyz")[0] == 200, 120)
            if self.get(pod, "/healthz")[0] != 200:
                raise RuntimeError(f"{pod} is ready, but /healthz says {self.get(pod, '/healthz')}")

    def ctl(self, *arguments, **options):
        return self.podman("exec", "-i", "coordinator-0-coordinator", "distillctl", *arguments, **options)

    def logs(self):
        for pod in self.pods:
            for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
                name = f'{pod["metadata"]["name"]}-{container["name"]}'
                done = self.podman("logs", "--tail", "30", name, check=False)
                print(f"--- {name}\n{done.stdout}{done.stderr}", file=sys.stderr)

    def down(self):
        for file in reversed(self.files):
            self.podman("kube", "down", file, check=False)


def check(condition, text):
    if not condition:
        raise RuntimeError(text)


def run_job(cluster):
    fleet = json.loads(cluster.ctl("fleet", "-o", "json").stdout)
    workers = sorted(w["id"] for w in fleet["workers"])
    check(workers == ["student-0", "student-1", "teacher-0", "teacher-1"], f"the fleet is {workers}")
    # A short version of the quick start's job: all its stages, on part of the data.
    job = (checks.ROOT / "examples/fashion-distill.yaml").read_text()
    short = [f"stages.{i}.steps={n}" for i, n in enumerate((10, 10, 10, 60))] + [
        "data.train_limit=4000",
        "data.test_limit=1000",
    ]
    sets = [argument for value in short for argument in ("--set", value)]
    submitted = cluster.ctl("submit", "-", *sets, "-q", input=job).stdout.strip()
    say(f"job {submitted} runs; one of the two teachers is stopped during it")
    wait_for("the first stage", lambda: "stage 1 of 4" in cluster.ctl("logs", submitted).stdout, 240)
    wait_for(
        "images for teacher-1",
        lambda: re.search(r"^distill_teacher_images_total\S* [1-9]", cluster.get("teacher-1", "/metrics")[1], re.M),
        60,
    )
    cluster.podman("pod", "kill", "teacher-1")
    ended = cluster.ctl("watch", submitted, check=False, timeout=600)
    check(
        "JOB_STATE_SUCCEEDED" in cluster.ctl("describe", submitted, "-o", "json").stdout and ended.returncode == 0,
        f"the job did not succeed ({ended.returncode}):\n{ended.stdout}{ended.stderr}{cluster.ctl('logs', submitted, check=False).stdout}",
    )
    results = json.loads(cluster.ctl("results", submitted, "-o", "json").stdout)["results"]
    student = next(r for r in results if r["job"] == submitted)
    check(student["student_score"]["top1"] > 0.3, f"the student learned nothing: {student}")
    written = cluster.volume("work") / pathlib.Path(student["safetensors"]).relative_to("/work")
    check(written.stat().st_size == student["student_bytes"], f"{written} is not the file that the results name")
    check(written.stat().st_uid == 10001, f"{written} belongs to {written.stat().st_uid}")
    say(f'the student in the volume work has top-1 {student["student_score"]["top1"]:.1%}')
    metrics = cluster.get("student-0", "/metrics")[1]
    check(
        "distill_student_steps_total 90" in metrics,
        "student-0's metrics do not tell of 90 steps:\n"
        + "\n".join(line for line in metrics.splitlines() if "steps_total" in line),
    )


def check_refusals(cluster):
    """Without the token, and without TLS, the coordinator's port is of no use."""
    for flags, code in (
        (["--token-file", "/etc/hostname"], 8),
        (["--coordinator", f'{cluster.addresses["coordinator-0"]}:7070'], 7),
    ):
        done = cluster.ctl("list", *flags, "--timeout", "3s", check=False)
        check(
            done.returncode == code, f"distillctl list {flags} ended with {done.returncode}, not {code}: {done.stderr}"
        )


def check_exit_codes(cluster):
    """Mistakes of an operator end a container with the code that docs/services.md gives, and a remedy in its log."""
    wrong = secret("wrong-token", {"token": "0" * 64})
    cluster.make_secrets([wrong])
    cluster.play("empty", [claim_for("empty")])
    for pod, volume, source, code, words in (
        ("student-1", "token", {"secret": {"secretName": "wrong-token", "optional": False}}, 8, "--token-file"),
        ("teacher-1", "models", {"persistentVolumeClaim": {"claimName": "empty"}}, 42, "--models"),
    ):
        broken = copy.deepcopy(next(p for p in cluster.pods if p["metadata"]["name"] == pod))
        broken["metadata"]["name"] = f"broken-{pod}"
        broken["spec"]["restartPolicy"] = "Never"
        broken["spec"]["volumes"] = [
            {"name": volume, **source} if v["name"] == volume else v for v in broken["spec"]["volumes"]
        ]
        cluster.play(f"broken-{pod}", cluster.configs() + [broken], "--network", NETWORK)
        container = f'broken-{pod}-{broken["spec"]["containers"][0]["name"]}'
        wait_for(f"the end of {container}", lambda: cluster.state(container)["Status"] == "exited", 120)
        log = cluster.podman("logs", container)
        check(
            cluster.state(container)["ExitCode"] == code,
            f"{container}: {cluster.state(container)}\n{log.stderr}{log.stdout}",
        )
        check(words in log.stdout + log.stderr, f"{container} does not name {words}:\n{log.stdout}{log.stderr}")


def check_stop(cluster):
    """SIGTERM, as a drain sends it: an orderly end within the grace of the pod, with the code that says so."""
    grace = next(
        p["spec"]["terminationGracePeriodSeconds"] for p in cluster.pods if p["metadata"]["name"] == "student-1"
    )
    cluster.podman("stop", "--time", str(grace), "student-1-student")
    check(cluster.state("student-1-student")["ExitCode"] == 143, f'student-1: {cluster.state("student-1-student")}')


def check_nothing_left(podman):
    left = {
        "pods": podman.lines("pod", "ls", "-q"),
        "containers": podman.lines("ps", "-aq"),
        "secrets": podman.lines("secret", "ls", "-q"),
        "volumes": podman.lines("volume", "ls", "-q"),
    }
    check(not any(left.values()), f"left after `podman kube down`: {left}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--tree", help="an installed tree to package, instead of installing from BUILD-FOLDER")
    parser.add_argument("--keep", action="store_true", help="leave the pods for a look at them")
    options = parser.parse_args()
    if os.geteuid() != 0:
        skip("podman plays these pods as root only (networks with fixed addresses)")
    for program, remedy in (
        ("podman", "scripts/setup.sh --containers"),
        ("debootstrap", "scripts/setup.sh --containers"),
        ("openssl", "apt-get install openssl"),
    ):
        if not shutil.which(program):
            skip(f"{program} is not installed: {remedy}")
    if not DATA.is_dir():
        skip(f"{DATA} is missing: scripts/setup.sh")
    # Not below /tmp: overlay needs a file system of its own kind, and the storage takes a gigabyte.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="podman-play.", dir=pathlib.Path(options.build).resolve()))
    # Podman refuses paths of more than 50 characters for its state (sockets); the checkout's may be longer.
    state = pathlib.Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))
    podman, cluster, failed = Podman(folder, state), None, True
    try:
        if not options.tree:
            options.tree = folder / "tree"
            run("cmake", "--install", options.build, "--prefix", options.tree, "--component", "runtime", "--strip")
        say("building the images with podman")
        base = run(checks.ROOT / "scripts/base_image.sh", env=podman.docker_environment).stdout.strip()
        run(
            checks.ROOT / "scripts/images.sh", "--prebuilt", options.tree, "--base", base, env=podman.docker_environment
        )
        run(
            checks.ROOT / "scripts/make_certs.sh",
            folder / "certs",
            "coordinator=coordinator,coordinator.distillery.svc",
            "teacher=*.teacher.distillery.svc",
        )
        certs = folder / "certs"
        secrets = [secret("distillery-token", {"token": (certs / "token").read_text()})]
        for server in ("coordinator", "teacher"):
            files = {
                "ca.crt": certs / "ca.crt",
                "tls.crt": certs / server / "tls.crt",
                "tls.key": certs / server / "tls.key",
            }
            secrets.append(secret(f"{server}-tls", {key: file.read_text() for key, file in files.items()}))
        cluster = Cluster(podman, folder)
        say(f"playing {len(cluster.pods)} pods: {', '.join(sorted(cluster.addresses))}")
        cluster.start(secrets)
        say("waiting until they are ready")
        cluster.wait_ready()
        check_refusals(cluster)
        run_job(cluster)
        check_exit_codes(cluster)
        check_stop(cluster)
        failed = False
    except Exception as error:
        print(f"FAILED: {error}", file=sys.stderr)
        if cluster:
            cluster.logs()
        raise
    finally:
        if options.keep:
            say(f"kept: {' '.join(map(str, podman.command))}")
            os._exit(1 if failed else 0)
        if cluster:
            say("podman kube down")
            cluster.down()
            podman("volume", "prune", "-f", check=False)
            podman("secret", "rm", "--all", check=False)
            if not failed:
                check_nothing_left(podman)
            podman("pod", "rm", "-fa", check=False)
            podman("network", "rm", "-f", NETWORK, check=False)
        podman("system", "reset", "-f", check=False)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(state, ignore_errors=True)
    say("done; nothing is left")


if __name__ == "__main__":
    main()
