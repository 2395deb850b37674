"""Cross-checks of deploy/kubernetes against the real programs, and mistakes that the checks must find.

    kubernetes_test.py FOLDER-OF-THE-PROGRAMS [unittest option...]
"""

import copy
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import yaml

import kubernetes_checks as checks
import kubernetes_schema as schema

BINARIES = None
MODEL = checks.ROOT / "examples/teachers/fashion-resnet20.safetensors"


class Service:
    """A real program on loopback, at ports that the kernel chose."""

    def __init__(self, folder, program, *flags):
        ready = pathlib.Path(folder) / f"{program}.ready"
        self.log = pathlib.Path(folder) / f"{program}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [f"{BINARIES}/{program}", "--ready-file", ready, *flags], stdout=log, stderr=log
            )
        end = time.monotonic() + 120
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"{program} did not get ready:\n{self.log.read_text()}")
            time.sleep(0.05)
        values = dict(line.split("=", 1) for line in ready.read_text().split())
        self.address, self.http = values.get("address"), values["http"]

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def manifests(overlay):
    return checks.Manifests.rendered(overlay)


class RenderedOverlays(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.programs = checks.Programs(BINARIES)

    def test_overlays_agree_with_the_programs_and_themselves(self):
        self.assertEqual(checks.overlays(), ["cpu", "dev-single-node", "gpu", "gpu-keda-job"])
        for overlay in checks.overlays():
            with self.subTest(overlay):
                problems = checks.all_checks(
                    manifests(overlay), self.programs, overlay.startswith("gpu"), checks.documented_metrics()
                )
                self.assertEqual(problems, [])

    def test_renderings_are_of_the_sources_that_are_here(self):
        for overlay in checks.overlays():
            text = (checks.TREE / f"rendered/{overlay}.yaml").read_text()
            self.assertEqual(list(schema.compare(overlay, None, text)), [])

    def test_overlays_scale_teachers_in_one_way(self):
        scalers = {
            o: [d["kind"] for d in manifests(o).of("HorizontalPodAutoscaler", "ScaledObject")]
            for o in checks.overlays()
        }
        self.assertEqual(
            scalers,
            {
                "cpu": ["HorizontalPodAutoscaler"],
                "gpu": ["HorizontalPodAutoscaler"],
                "gpu-keda-job": ["ScaledObject"],
                "dev-single-node": [],
            },
        )

    def test_both_autoscalers_want_the_same(self):
        hpa = manifests("gpu").of("HorizontalPodAutoscaler")[0]["spec"]
        keda = manifests("gpu-keda-job").of("ScaledObject")[0]["spec"]
        self.assertEqual((hpa["minReplicas"], hpa["maxReplicas"]), (keda["minReplicaCount"], keda["maxReplicaCount"]))
        self.assertEqual(hpa["behavior"], keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"])
        self.assertEqual(
            hpa["metrics"][0]["pods"]["target"]["averageValue"], keda["triggers"][0]["metadata"]["threshold"]
        )

    def test_the_adapter_serves_the_metric_that_the_autoscaler_reads(self):
        rules = yaml.safe_load((checks.TREE / "components/hpa/adapter-rules.yaml").read_text())["rules"]["custom"]
        read = manifests("cpu").of("HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["pods"]["metric"]["name"]
        self.assertEqual([rule["seriesQuery"].split("{")[0] for rule in rules], [read])

    def test_students_of_both_kinds_are_the_same_but_for_what_a_job_needs(self):
        stateful = copy.deepcopy(manifests("gpu").workload("student"))
        job = copy.deepcopy(manifests("gpu-keda-job").workload("student"))
        self.assertEqual((stateful["kind"], job["kind"]), ("StatefulSet", "Job"))
        self.assertEqual(checks.pod(job).pop("restartPolicy"), "Never")
        self.assertEqual(checks.pod(job).pop("subdomain"), stateful["spec"]["serviceName"])
        for workload in (stateful, job):
            main = checks.pod(workload)["containers"][0]
            main["env"] = [e for e in main["env"] if e["name"] not in ("DISTILL_ID", "INDEX")]
        self.assertEqual(checks.pod(job), checks.pod(stateful))
        self.assertEqual(job["spec"]["completions"], job["spec"]["parallelism"])

    def test_prometheus_rules_know_the_pod_monitors(self):
        text = "\n".join(p.read_text() for p in sorted((checks.ROOT / "deploy/prometheus").rglob("*.yml")))
        patterns = set(re.findall(r'job=~"([^"]+)"', text))
        self.assertTrue(patterns, "deploy/prometheus names no jobs")
        for monitor in manifests("gpu-keda-job").of("PodMonitor"):
            job = f'{monitor["metadata"]["namespace"]}/{monitor["metadata"]["name"]}'
            self.assertTrue(
                any(re.fullmatch(p, job) for p in patterns), f"no rule of deploy/prometheus means {job}: {patterns}"
            )

    def test_the_guide_names_what_is_there(self):
        guide = (checks.ROOT / "docs/deploy-kubernetes.md").read_text()
        for path in re.findall(r"deploy/kubernetes/[\w./-]+", guide):
            self.assertTrue((checks.ROOT / path.rstrip(".")).exists(), f"docs/deploy-kubernetes.md names {path}")
        for overlay in checks.overlays():
            self.assertIn(overlay, guide)
        for component in (checks.TREE / "components").iterdir():
            self.assertIn(component.name, guide)
        for version in (schema.VERSIONS[0], schema.VERSIONS[-1]):
            self.assertIn(version, guide)


class RealPrograms(unittest.TestCase):
    """What probes, monitors and autoscalers ask for is there when the programs run with the flags of the manifests."""

    def test_probe_paths_and_metrics_exist(self):
        with tempfile.TemporaryDirectory() as folder:
            services = []
            try:
                coordinator = Service(
                    folder, "distill-coordinator", "--listen", "127.0.0.1:0", "--state-dir", f"{folder}/state"
                )
                services.append(coordinator)
                teacher = Service(
                    folder,
                    "distill-teacher",
                    "--model",
                    f"fashion={MODEL}",
                    "--coordinator",
                    coordinator.address,
                    "--threads",
                    "1",
                )
                services.append(teacher)
                pathlib.Path(folder, "data").mkdir()
                student = Service(
                    folder,
                    "distill-student",
                    "--coordinator",
                    coordinator.address,
                    "--data-root",
                    f"{folder}/data",
                    "--work-dir",
                    f"{folder}/work",
                )
                services.append(student)
                for service in services:
                    for path in ("/healthz", "/readyz", "/metrics"):
                        self.assertEqual(service.get(path)[0], 200, f"{service.log}: {path}")
                scaled_by = set(re.findall(r"^(distill_[a-z_]+)", teacher.get("/metrics")[1], re.M))
                for overlay in ("cpu", "gpu", "gpu-keda-job"):
                    self.assertEqual(checks.check_metrics(manifests(overlay), scaled_by), [])
                # The orderly stop that terminationGracePeriodSeconds waits for, and its exit code.
                for service in reversed(services):
                    self.assertEqual(service.stop(), 143, service.log.read_text())
            finally:
                for service in services:
                    service.stop()

    def test_config_maps_are_read_by_the_programs(self):
        """Each file is taken as it is. The paths in it do not exist here: the program must get as far as saying so
        (exit code 42) rather than stumble over a flag (2)."""
        for component in ("coordinator", "teacher", "student"):
            deployed = manifests("cpu")
            workload = deployed.workload(component)
            text = next(d for c in deployed.of("ConfigMap") for f, d in c["data"].items() if f == f"{component}.toml")
            with tempfile.TemporaryDirectory() as folder:
                config = pathlib.Path(folder, "config.toml")
                moved = re.sub(r'"(/(?:etc|var|data|models|work)[^"]*)"', rf'"{folder}\1"', text)
                config.write_text(re.sub(r'"0\.0\.0\.0:\d+"', '"127.0.0.1:0"', moved))
                run = subprocess.run(
                    [f"{BINARIES}/{checks.runs(workload)}", "--config", config],
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                self.assertEqual(run.returncode, 42, f"{component}: {run.stdout}{run.stderr}")
                self.assertIn(folder, run.stdout + run.stderr)
                config.write_text(config.read_text() + "hartbeat = 1\n")
                run = subprocess.run(
                    [f"{BINARIES}/{checks.runs(workload)}", "--config", config],
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                self.assertEqual(run.returncode, 2, f"{component}: {run.stdout}{run.stderr}")


class Mistakes(unittest.TestCase):
    """Each makes one mistake in a copy of a rendering and expects the checks to name it."""

    @classmethod
    def setUpClass(cls):
        cls.programs = checks.Programs(BINARIES)

    def finds(self, text, change, overlay="cpu"):
        broken = copy.deepcopy(manifests(overlay))
        change(broken)
        problems = checks.all_checks(broken, self.programs, overlay.startswith("gpu"), checks.documented_metrics())
        self.assertTrue(any(text in p for p in problems), f"no problem says '{text}'; found: {problems}")

    @staticmethod
    def main(m, component):
        return checks.pod(m.workload(component))["containers"][0]

    def config(self, m, component, old, new):
        for config in m.of("ConfigMap"):
            for file, text in config["data"].items():
                if file == f"{component}.toml":
                    self.assertIn(old, text)
                    config["data"][file] = text.replace(old, new)

    def policy(self, m, policy):
        return m.named("NetworkPolicy", policy)["spec"]

    def test_ports(self):
        self.finds(
            "readinessProbe asks port web",
            lambda m: self.main(m, "teacher")["readinessProbe"]["httpGet"].update(port="web"),
        )
        self.finds(
            "livenessProbe asks /health",
            lambda m: self.main(m, "student")["livenessProbe"]["httpGet"].update(path="/health"),
        )
        self.finds("listens on 0.0.0.0:7071", lambda m: self.main(m, "teacher")["ports"][0].update(containerPort=7072))
        self.finds("listens on 0.0.0.0:9090", lambda m: self.config(m, "student", "0.0.0.0:8080", "0.0.0.0:9090"))
        self.finds(
            "goes to rpc of", lambda m: m.named("Service", "coordinator")["spec"]["ports"][0].update(targetPort="rpc")
        )
        self.finds(
            "no Service answers at coordinator:7077",
            lambda m: self.config(m, "teacher", "coordinator:7070", "coordinator:7077"),
        )
        self.finds(
            "publishes no addresses that are not ready",
            lambda m: m.named("Service", "coordinator")["spec"].pop("publishNotReadyAddresses"),
        )
        self.finds("no HTTP startupProbe", lambda m: self.main(m, "coordinator").pop("startupProbe"))
        self.finds(
            "nothing at port metrics",
            lambda m: m.of("PodMonitor")[0]["spec"]["podMetricsEndpoints"][0].update(port="metrics"),
            "gpu-keda-job",
        )

    def test_labels_and_selectors(self):
        def relabel(m, component):
            checks.labels(m.workload(component))["app.kubernetes.io/name"] = "destillery"

        self.finds("its selector does not match its own pods", lambda m: relabel(m, "student"))
        self.finds("Service teacher: selects pods of []", lambda m: relabel(m, "teacher"))
        self.finds(
            "PodDisruptionBudget coordinator: selects pods of ['student']",
            lambda m: m.named("PodDisruptionBudget", "coordinator")["spec"]["selector"]["matchLabels"].update(
                {"app.kubernetes.io/component": "student"}
            ),
        )
        self.finds(
            "no Deployment teachers",
            lambda m: m.of("HorizontalPodAutoscaler")[0]["spec"]["scaleTargetRef"].update(name="teachers"),
        )
        self.finds("sets replicas", lambda m: m.workload("teacher")["spec"].update(replicas=2))
        self.finds(
            "no PodDisruptionBudget student", lambda m: m.documents.remove(m.named("PodDisruptionBudget", "student"))
        )
        self.finds("drains", lambda m: m.named("PodDisruptionBudget", "coordinator")["spec"].update(minAvailable=1))
        self.finds(
            "in another namespace", lambda m: m.named("Service", "student")["metadata"].update(namespace="default")
        )

    def test_flags_and_environment(self):
        self.finds(
            "--help knows no --heartbeats", lambda m: self.main(m, "coordinator")["args"].append("--heartbeats=1")
        )
        self.finds("--help knows no --graze", lambda m: self.config(m, "student", "grace =", "graze ="))
        self.finds(
            "no flag of distill-student reads DISTILL_HOSTNAME",
            lambda m: self.main(m, "student")["env"].append({"name": "DISTILL_HOSTNAME", "value": "x"}),
        )
        self.finds("starts none of", lambda m: self.main(m, "teacher").update(command=["distill-techer"]))
        self.finds(
            "--work-dir, which distill-student requires",
            lambda m: self.config(m, "student", 'work-dir = "/work"\n', ""),
        )
        self.finds(
            "nothing is mounted at /srv/models", lambda m: self.config(m, "teacher", '"/models"', '"/srv/models"')
        )
        self.finds(
            "is mounted read-only",
            lambda m: [v.update(readOnly=True) for v in self.main(m, "student")["volumeMounts"] if v["name"] == "work"],
        )
        self.finds(
            "/etc/distill/tls/tls.key, which tls-key names, is not among",
            lambda m: self.config(m, "student", "tls-ca =", 'tls-key = "/etc/distill/tls/tls.key"\ntls-ca ='),
        )
        self.finds(
            "--config names",
            lambda m: self.main(m, "student").update(args=["--config=/etc/distill/config/students.toml"]),
        )
        self.finds(
            "advertises",
            lambda m: checks.pod(m.workload("teacher"))["initContainers"][0].update(
                args=[checks.pod(m.workload("teacher"))["initContainers"][0]["args"][0].replace("tr .: --", "cat")]
            ),
        )

    def test_volumes_secrets_and_config_maps(self):
        self.finds("mount of unknown volume", lambda m: self.main(m, "teacher")["volumeMounts"][0].update(name="model"))
        self.finds("volume models is mounted nowhere", lambda m: self.main(m, "teacher")["volumeMounts"].pop(0))
        self.finds("no PersistentVolumeClaim", lambda m: m.documents.remove(m.named("PersistentVolumeClaim", "work")))
        self.finds(
            "is none of",
            lambda m: next(v for v in checks.pod(m.workload("teacher"))["volumes"] if v["name"] == "tls")[
                "secret"
            ].update(secretName="tls"),
        )
        self.finds(
            "has no key ca.pem",
            lambda m: next(v for v in checks.pod(m.workload("student"))["volumes"] if v["name"] == "tls")[
                "secret"
            ].update(items=[{"key": "ca.pem", "path": "ca.crt"}]),
        )
        self.finds("no ConfigMap", lambda m: m.of("ConfigMap")[0]["metadata"].update(name="settings"))
        self.finds(
            "is used by no pod",
            lambda m: m.documents.append(
                {"kind": "ConfigMap", "metadata": {"name": "left-over", "namespace": "distillery"}, "data": {}}
            ),
        )
        self.finds(
            "no ServiceAccount", lambda m: checks.pod(m.workload("teacher")).update(serviceAccountName="default")
        )

    def test_network_policies(self):
        self.finds(
            "stranger -> coordinator TCP 7070: open",
            lambda m: m.documents.remove(m.named("NetworkPolicy", "default-deny"))
            or self.policy(m, "coordinator")["ingress"][0]["from"].append({"podSelector": {}}),
        )
        self.finds(
            "student -> teacher TCP 7071: closed", lambda m: m.documents.remove(m.named("NetworkPolicy", "teacher"))
        )
        self.finds(
            "student -> coordinator TCP 7070: closed",
            lambda m: self.policy(m, "coordinator")["ingress"][0]["ports"][0].update(port="gprc"),
        )
        self.finds("teacher -> dns UDP 53: closed", lambda m: m.documents.remove(m.named("NetworkPolicy", "dns")))
        self.finds(
            "prometheus -> student TCP 8080: closed",
            lambda m: self.policy(m, "metrics")["podSelector"]["matchLabels"].update({"app.kubernetes.io/name": "x"}),
        )
        self.finds(
            "impostor -> teacher TCP 7071: open",
            lambda m: self.policy(m, "teacher")["ingress"][0]["from"][0].update(namespaceSelector={}),
        )
        self.finds(
            "student -> student TCP 22: open",
            lambda m: [self.policy(m, "student")[k][-1].pop("ports") for k in ("ingress", "egress")],
        )
        self.finds("student -> api-server TCP 443: open", lambda m: self.policy(m, "student")["egress"].append({}))

    def test_grace_security_and_resources(self):
        self.finds(
            "terminationGracePeriodSeconds 30",
            lambda m: checks.pod(m.workload("student")).update(terminationGracePeriodSeconds=30),
        )
        self.finds("longer than --grace 600", lambda m: self.config(m, "teacher", "grace = 45", "grace = 600"))
        self.finds(
            "not restricted", lambda m: self.main(m, "teacher")["securityContext"].update(allowPrivilegeEscalation=True)
        )
        self.finds(
            "not restricted",
            lambda m: checks.pod(m.workload("teacher"))["initContainers"][0]["securityContext"].pop("capabilities"),
        )
        self.finds(
            "its root can be written to",
            lambda m: self.main(m, "student")["securityContext"].pop("readOnlyRootFilesystem"),
        )
        self.finds(
            "does not run as user",
            lambda m: checks.pod(m.workload("coordinator"))["securityContext"].update(runAsUser=0),
        )
        self.finds(
            "not of a restricted kind",
            lambda m: checks.pod(m.workload("student"))["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        )
        self.finds(
            "does not enforce",
            lambda m: m.of("Namespace")[0]["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        )
        self.finds("a limit of memory", lambda m: self.main(m, "coordinator")["resources"].pop("limits"))
        self.finds(
            "GPU of overlay and pod differ",
            lambda m: self.main(m, "student")["resources"]["limits"].pop("nvidia.com/gpu"),
            "gpu",
        )
        self.finds(
            "/dev/shm is not memory",
            lambda m: next(v for v in checks.pod(m.workload("student"))["volumes"] if v["name"] == "shm").update(
                emptyDir={}
            ),
        )
        self.finds(
            "image distillery/teacher:latest",
            lambda m: self.main(m, "teacher").update(image="distillery/teacher:latest"),
        )

    def test_failure_policy_and_metrics(self):
        def rules(m):
            return m.of("Job")[0]["spec"]["podFailurePolicy"]["rules"]

        self.finds(
            "fails on exit codes [2, 8, 42, 74, 75]",
            lambda m: rules(m)[1]["onExitCodes"]["values"].append(75),
            "gpu-keda-job",
        )
        self.finds(
            "no container worker", lambda m: rules(m)[1]["onExitCodes"].update(containerName="worker"), "gpu-keda-job"
        )
        self.finds("disruptions are not ignored first", lambda m: rules(m).reverse(), "gpu-keda-job")
        self.finds(
            "needs restartPolicy Never",
            lambda m: checks.pod(m.of("Job")[0]).update(restartPolicy="OnFailure"),
            "gpu-keda-job",
        )
        self.finds(
            "no metric distill_teacher_queue_depth",
            lambda m: m.of("HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["pods"]["metric"].update(
                name="distill_teacher_queue_depth"
            ),
        )
        self.finds(
            "no metric distill_teacher_queue",
            lambda m: m.of("ScaledObject")[0]["spec"]["triggers"][0]["metadata"].update(
                query='sum(distill_teacher_queue{namespace="distillery"})'
            ),
            "gpu-keda-job",
        )

    def test_schemas(self):
        """The validators are strict: unknown fields, wrong types, kinds that a version lacks."""
        for version in schema.VERSIONS:
            deployment = manifests("cpu").workload("teacher")
            deployment["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
            self.assertTrue(list(schema.validate(deployment, version)), f"{version} takes an unknown field")
            service = manifests("cpu").named("Service", "teacher")
            service["spec"]["ports"][0]["port"] = "grpc"
            self.assertTrue(list(schema.validate(service, version)), f"{version} takes a port that is no number")
            budget = manifests("cpu").named("PodDisruptionBudget", "teacher")
            budget["apiVersion"] = "policy/v1beta1"
            self.assertTrue(
                list(schema.validate(budget, version)), f"{version} takes a version of the API that is gone"
            )
        scaled = manifests("gpu-keda-job").of("ScaledObject")[0]
        self.assertEqual(list(schema.validate_custom(scaled)), [])
        scaled["spec"]["triggers"][0]["metadata"]["treshold"] = "4"
        self.assertTrue(list(schema.validate_custom(scaled)))
        monitor = manifests("gpu-keda-job").of("PodMonitor")[0]
        monitor["spec"]["podMetricsEndpoints"][0]["interval"] = "10"
        self.assertTrue(list(schema.validate_custom(monitor)))

    def test_stale_renderings(self):
        text = (checks.TREE / "rendered/cpu.yaml").read_text()
        self.assertTrue(list(schema.compare("cpu", None, text.replace("sha256 ", "sha256 0"))))
        self.assertEqual(list(schema.compare("cpu", text, text)), [])
        self.assertTrue(list(schema.compare("cpu", text.replace("port: 7070", "port: 7000"), text)))


if __name__ == "__main__":
    BINARIES = sys.argv.pop(1)
    unittest.main(verbosity=1)
