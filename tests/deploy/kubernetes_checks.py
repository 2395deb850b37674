"""Cross-checks of rendered Kubernetes manifests: what they name must exist in the programs' --help and in one another.

A check takes a Manifests and returns its problems as sentences; none means that it is content. kubernetes_test.py runs
them on deploy/kubernetes/rendered and, to see that they can fail, on manifests with mistakes in them.
"""

import hashlib
import pathlib
import re
import subprocess
import tempfile
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
TREE = ROOT / "deploy/kubernetes"
PROGRAMS = ("distill-coordinator", "distill-teacher", "distill-student", "distillctl")
# What the operator makes before `kubectl apply` (docs/deploy-kubernetes.md): names and keys.
SECRETS = {
    "coordinator-tls": {"ca.crt", "tls.crt", "tls.key"},
    "teacher-tls": {"ca.crt", "tls.crt", "tls.key"},
    "distillery-token": {"token"},
}
# Every connection that the design needs: (from, to, protocol, first port, last port). docs/design.md
CONNECTIONS = {
    ("teacher", "coordinator", "TCP", 7070, 7070),
    ("student", "coordinator", "TCP", 7070, 7070),
    ("student", "teacher", "TCP", 7071, 7071),
    ("student", "student", "TCP", 32768, 60999),  # Gloo and NCCL: net.ipv4.ip_local_port_range
    ("prometheus", "coordinator", "TCP", 8080, 8080),
    ("prometheus", "teacher", "TCP", 8080, 8080),
    ("prometheus", "student", "TCP", 8080, 8080),
    ("teacher", "dns", "UDP", 53, 53),
    ("teacher", "dns", "TCP", 53, 53),
    ("student", "dns", "UDP", 53, 53),
    ("student", "dns", "TCP", 53, 53),
}
FLAGS_NAMING_FILES = {"tls-ca", "tls-cert", "tls-key", "token-file"}
FLAGS_NAMING_FOLDERS = {"models", "data-root", "model-root", "work-dir", "state-dir"}
FLAGS_WRITTEN_TO = {"work-dir", "state-dir"}


def overlays():
    return sorted(path.name for path in (TREE / "overlays").iterdir() if (path / "kustomization.yaml").is_file())


def source_digest():
    """Of all that the overlays are rendered from; written into each rendering."""
    digest = hashlib.sha256()
    for path in sorted(
        p for folder in ("base", "components", "overlays") for p in (TREE / folder).rglob("*") if p.is_file()
    ):
        digest.update(str(path.relative_to(TREE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Programs:
    """Flags of the real programs, read from their --help."""

    def __init__(self, folder):
        self.flags, self.required, self.environment, self.defaults = {}, {}, {}, {}
        for program in PROGRAMS:
            text = subprocess.run(
                [f"{folder}/{program}", "--help"], capture_output=True, text=True, check=True, timeout=60
            ).stdout
            self.flags[program] = set(re.findall(r"^ *(?:-\w,\s*)?--([a-z-]+)", text, re.M))
            self.environment[program] = set(re.findall(r"\(Env:(DISTILL_[A-Z_]+)\)", text))
            self.required[program] = set(re.findall(r"^ *--([a-z-]+)[^\n]* REQUIRED", text, re.M))
            self.defaults[program] = dict(re.findall(r"^ *--([a-z-]+) [^\n]*?\]?=(\S+) ", text, re.M))
            if not self.flags[program]:
                raise ValueError(f"{program} --help names no flags")


def exit_codes_not_to_retry():
    """From the table of docs/services.md: the codes whose last column says no."""
    text = (ROOT / "docs/services.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
    return {int(code) for code in re.findall(r"^\| (\d+) \|[^|]*\| no \|", text, re.M)}


def documented_metrics():
    return set(re.findall(r"`(distill_[a-z_]+)`", (ROOT / "docs/services.md").read_text().split("## Metrics")[1]))


class Manifests:
    """The documents of one overlay."""

    def __init__(self, documents):
        self.documents = documents

    @classmethod
    def rendered(cls, overlay):
        return cls([d for d in yaml.safe_load_all((TREE / "rendered" / f"{overlay}.yaml").read_text()) if d])

    def of(self, *kinds):
        return [d for d in self.documents if d["kind"] in kinds]

    def named(self, kind, name):
        return next((d for d in self.of(kind) if d["metadata"]["name"] == name), None)

    def workloads(self):
        return self.of("Deployment", "StatefulSet", "Job", "Pod")

    def workload(self, component):
        return next((w for w in self.workloads() if labels(w)["app.kubernetes.io/component"] == component), None)


def name(document):
    return f'{document["kind"]} {document["metadata"]["name"]}'


def template(workload):
    return workload if workload["kind"] == "Pod" else workload["spec"]["template"]


def pod(workload):
    return template(workload)["spec"]


def labels(workload):
    return template(workload)["metadata"]["labels"]


def containers(workload):
    return pod(workload).get("initContainers", []) + pod(workload)["containers"]


def selects(selector, values):
    for key, wanted in (selector.get("matchLabels") or {}).items():
        if values.get(key) != wanted:
            return False
    for rule in selector.get("matchExpressions") or []:
        value = values.get(rule["key"])
        fits = {
            "In": value in rule.get("values", []),
            "NotIn": value not in rule.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not fits:
            return False
    return True


def selected(manifests, selector):
    return [w for w in manifests.workloads() if selects(selector, labels(w))]


def mount_of(container, path):
    """The mount that holds `path`: the longest mountPath that is path or a folder above it."""
    mounts = [
        m for m in container.get("volumeMounts", []) if path == m["mountPath"] or path.startswith(m["mountPath"] + "/")
    ]
    return max(mounts, key=lambda m: len(m["mountPath"]), default=None)


def files_of(manifests, workload, volume):
    """Names of the files in a Secret or ConfigMap volume, None for other volumes."""
    if "secret" in volume:
        keys = SECRETS.get(volume["secret"]["secretName"], set())
        items = volume["secret"].get("items")
        return {i["path"] for i in items if i["key"] in keys} if items else keys
    if "configMap" in volume:
        config = manifests.named("ConfigMap", volume["configMap"]["name"])
        return set(config["data"]) if config else set()
    return None


def run_advertise(manifests, workload):
    """Runs the shell of the teacher's init container, as the pod would, in a folder; returns what it wrote."""
    init = pod(workload)["initContainers"][0]
    config = next(v for v in pod(workload)["volumes"] if v["name"] == mount_of(init, "/etc/distill/config")["name"])
    data = manifests.named("ConfigMap", config["configMap"]["name"])["data"]
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        (here / "config").mkdir()
        (here / "run").mkdir()
        for file, text in data.items():
            (here / "config" / file).write_text(text)
        script = init["args"][0].replace("/etc/distill/config", f"{here}/config").replace("/run/distill", f"{here}/run")
        environment = {
            "PATH": "/usr/bin:/bin",
            "POD_IP": "10.1.2.3",
            "POD_NAMESPACE": workload["metadata"]["namespace"],
        }
        subprocess.run(init["command"] + [script], env=environment, check=True, timeout=60)
        return {path.name: path.read_text() for path in (here / "run").iterdir()}


def configuration(manifests, workload):
    """Flags of the workload's program: those of its --config file, then those of the command line. ({flags},
    [problems])."""
    container = pod(workload)["containers"][0]
    flags, problems = {}, []
    for argument in container.get("args", []):
        found = re.fullmatch(r"--([a-z-]+)(?:=(.*))?", argument)
        if not found:
            problems.append(f"{name(workload)}: argument '{argument}' is not --flag or --flag=value")
        elif found[1] == "config":
            mount = mount_of(container, found[2])
            volume = mount and next((v for v in pod(workload)["volumes"] if v["name"] == mount["name"]), None)
            file = found[2].rsplit("/", 1)[1]
            if volume is None:
                problems.append(f"{name(workload)}: nothing is mounted at {found[2]}, which --config names")
                continue
            files = (
                (manifests.named("ConfigMap", volume["configMap"]["name"]) or {"data": {}})["data"]
                if "configMap" in volume
                else run_advertise(manifests, workload)
            )
            if file not in files:
                problems.append(f"{name(workload)}: --config names {found[2]}, and {sorted(files)} are there")
                continue
            flags = {**tomllib.loads(files[file]), **flags}
        else:
            flags[found[1]] = found[2] if found[2] is not None else True
    return flags, problems


def runs(workload):
    """The program of ours in the first container, or None (the loader)."""
    program = (pod(workload)["containers"][0].get("command") or [""])[0]
    return program if program in PROGRAMS else None


def check_references(manifests):
    problems, used_secrets, used_configs = [], set(), set()
    for workload in manifests.workloads():
        claims = [c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = {v["name"]: v for v in pod(workload).get("volumes", [])} | {c: {"claim": c} for c in claims}
        mounted = set()
        for container in containers(workload):
            for mount in container.get("volumeMounts", []):
                mounted.add(mount["name"])
                if mount["name"] not in volumes:
                    problems.append(f'{name(workload)}: mount of unknown volume {mount["name"]}')
        for unused in sorted(set(volumes) - mounted):
            problems.append(f"{name(workload)}: volume {unused} is mounted nowhere")
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                if not manifests.named("PersistentVolumeClaim", claim):
                    problems.append(f"{name(workload)}: no PersistentVolumeClaim {claim}")
            elif "configMap" in volume:
                used_configs.add(volume["configMap"]["name"])
                if not manifests.named("ConfigMap", volume["configMap"]["name"]):
                    problems.append(f'{name(workload)}: no ConfigMap {volume["configMap"]["name"]}')
            elif "secret" in volume:
                secret = volume["secret"]["secretName"]
                used_secrets.add(secret)
                if secret not in SECRETS:
                    problems.append(f"{name(workload)}: Secret {secret} is none of {sorted(SECRETS)}")
                for item in volume["secret"].get("items", []):
                    if item["key"] not in SECRETS.get(secret, set()):
                        problems.append(f'{name(workload)}: Secret {secret} has no key {item["key"]}')
                if volume["secret"].get("defaultMode") != 0o440:
                    problems.append(
                        f"{name(workload)}: files of Secret {secret} are not for the pod's group alone (0440)"
                    )
        if not manifests.named("ServiceAccount", pod(workload).get("serviceAccountName", "")):
            problems.append(f'{name(workload)}: no ServiceAccount {pod(workload).get("serviceAccountName")}')
        governing = workload["spec"].get("serviceName") or pod(workload).get("subdomain")
        if governing and not manifests.named("Service", governing):
            problems.append(f"{name(workload)}: no Service {governing} to give its pods names")
    for config in manifests.of("ConfigMap"):
        if config["metadata"]["name"] not in used_configs:
            problems.append(f"{name(config)} is used by no pod")
    for claim in manifests.of("PersistentVolumeClaim"):
        users = [
            w
            for w in manifests.workloads()
            for v in pod(w).get("volumes", [])
            if v.get("persistentVolumeClaim", {}).get("claimName") == claim["metadata"]["name"]
        ]
        if not users:
            problems.append(f"{name(claim)} is used by no pod")
    guide = (ROOT / "docs/deploy-kubernetes.md").read_text()
    for secret, keys in SECRETS.items():
        if secret not in used_secrets:
            problems.append(f"Secret {secret} is asked for and used by no pod")
        if secret not in guide:
            problems.append(f"docs/deploy-kubernetes.md does not say how Secret {secret} is made")
    return problems


def check_flags(manifests, programs):
    problems = []
    for workload in manifests.workloads():
        container = pod(workload)["containers"][0]
        program = runs(workload)
        if program is None:
            if labels(workload)["app.kubernetes.io/component"] != "loader":
                problems.append(f'{name(workload)}: {container.get("command")} starts none of {PROGRAMS}')
            continue
        flags, found = configuration(manifests, workload)
        problems += found
        environment = {e["name"] for e in container.get("env", []) if e["name"].startswith("DISTILL_")}
        known = set(programs.environment[program])
        # The coordinator's image holds distillctl, which `kubectl exec` runs with the same environment.
        if program == "distill-coordinator":
            known |= programs.environment["distillctl"]
        for variable in sorted(environment - known):
            problems.append(f"{name(workload)}: no flag of {program} reads {variable}")
        for flag in sorted(set(flags) - programs.flags[program]):
            problems.append(f"{name(workload)}: {program} --help knows no --{flag}")
        given = set(flags) | {v.removeprefix("DISTILL_").lower().replace("_", "-") for v in environment}
        for flag in sorted(programs.required[program] - given):
            problems.append(f"{name(workload)}: --{flag}, which {program} requires, is not given")
        for flag in sorted({"token-file", "tls-ca"} - given):
            problems.append(f"{name(workload)}: no --{flag}")
        paths = {f: v for f, v in flags.items() if f in FLAGS_NAMING_FILES | FLAGS_NAMING_FOLDERS}
        paths |= {e["name"]: e["value"] for e in container.get("env", []) if str(e.get("value", "")).startswith("/")}
        for flag, path in paths.items():
            mount = mount_of(container, path)
            volume = mount and next((v for v in pod(workload)["volumes"] if v["name"] == mount["name"]), None)
            files = files_of(manifests, workload, volume) if volume else None
            if mount is None:
                problems.append(f"{name(workload)}: nothing is mounted at {path}, which {flag} names")
            elif flag in FLAGS_WRITTEN_TO and mount.get("readOnly"):
                problems.append(f"{name(workload)}: {path}, which {flag} names, is mounted read-only")
            elif files is not None and path.removeprefix(mount["mountPath"] + "/") not in files:
                problems.append(f"{name(workload)}: {path}, which {flag} names, is not among {sorted(files)}")
        if program == "distill-teacher" and "advertise" in flags:
            wanted = f'10-1-2-3.teacher.{workload["metadata"]["namespace"]}.svc:7071'
            if flags["advertise"] != wanted:
                problems.append(f'{name(workload)}: a pod at 10.1.2.3 advertises {flags["advertise"]}, not {wanted}')
    return problems


def check_ports(manifests):
    problems = []
    for workload in manifests.workloads():
        if runs(workload) is None:
            continue
        flags, _ = configuration(manifests, workload)
        container = pod(workload)["containers"][0]
        ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
        listens = {"grpc": flags.get("listen"), "http": flags.get("http-listen")}
        for port, address in listens.items():
            if address is None and port in ports:
                problems.append(f"{name(workload)}: port {port} is declared, and no flag listens there")
            if address is not None and address != f"0.0.0.0:{ports.get(port)}":
                problems.append(f"{name(workload)}: listens on {address} for {port}, and the pod declares {ports}")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container.get(probe, {}).get("httpGet")
            wanted = "/readyz" if probe == "readinessProbe" else "/healthz"
            if get is None:
                problems.append(f"{name(workload)}: no HTTP {probe}")
            elif get["port"] not in ports and get["port"] not in ports.values():
                problems.append(f'{name(workload)}: {probe} asks port {get["port"]}, declared are {ports}')
            elif get["path"] != wanted:
                problems.append(f'{name(workload)}: {probe} asks {get["path"]}, not {wanted}')
        if "coordinator" in flags:
            host, port = flags["coordinator"].split(":")
            service = manifests.named("Service", host)
            if service is None or int(port) not in [p["port"] for p in service["spec"]["ports"]]:
                problems.append(f'{name(workload)}: no Service answers at {flags["coordinator"]}')
    for service in manifests.of("Service"):
        # Programs call each other as soon as they run: teachers before they are ready, a coordinator that has just
        # restarted.
        if not service["spec"].get("publishNotReadyAddresses"):
            problems.append(f"{name(service)}: publishes no addresses that are not ready")
        for port in service["spec"]["ports"]:
            for workload in selected(manifests, {"matchLabels": service["spec"]["selector"]}):
                declared = {p["name"]: p["containerPort"] for p in pod(workload)["containers"][0].get("ports", [])}
                if declared.get(port["targetPort"]) != port["port"]:
                    problems.append(
                        f'{name(service)}: port {port["port"]} goes to {port["targetPort"]} of {name(workload)}, which has {declared}'
                    )
    for monitor in manifests.of("PodMonitor"):
        for workload in selected(manifests, monitor["spec"]["selector"]):
            declared = {p["name"] for p in pod(workload)["containers"][0].get("ports", [])}
            for end in monitor["spec"]["podMetricsEndpoints"]:
                if end["port"] not in declared or end["path"] != "/metrics":
                    problems.append(
                        f'{name(monitor)}: nothing at port {end["port"]}, path {end["path"]} of {name(workload)}'
                    )
    return problems


def check_selectors(manifests):
    problems = []
    for workload in manifests.workloads():
        component = labels(workload).get("app.kubernetes.io/component")
        selector = workload["spec"].get("selector")
        if selector is not None and not selects(selector, labels(workload)):
            problems.append(f"{name(workload)}: its selector does not match its own pods")
        for spread in pod(workload).get("topologySpreadConstraints", []):
            if [name(w) for w in selected(manifests, spread["labelSelector"])] != [name(workload)]:
                problems.append(f"{name(workload)}: spreads other pods than its own")
        if component == "loader":
            continue
        if workload["metadata"]["name"] != component:
            problems.append(f"{name(workload)}: its pods call themselves {component}")
    selecting = [(d, {"matchLabels": d["spec"]["selector"]}) for d in manifests.of("Service")]
    selecting += [(d, d["spec"]["selector"]) for d in manifests.of("PodDisruptionBudget", "PodMonitor")]
    for document, selector in selecting:
        found = [w["metadata"]["name"] for w in selected(manifests, selector)]
        wanted = document["metadata"]["name"].removeprefix("distill-")
        if found != [wanted]:
            problems.append(f"{name(document)}: selects pods of {found}, not of ['{wanted}']")
    for kind in ("Service", "PodDisruptionBudget"):
        for component in ("coordinator", "teacher", "student"):
            if manifests.named(kind, component) is None:
                problems.append(f"no {kind} {component}")
    for scaler in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        workload = manifests.named(target["kind"], target["name"])
        if workload is None:
            problems.append(f'{name(scaler)}: no {target["kind"]} {target["name"]}')
        elif "replicas" in workload["spec"]:
            problems.append(f"{name(workload)}: sets replicas, which {name(scaler)} owns")
    if len(manifests.of("HorizontalPodAutoscaler", "ScaledObject")) > 1:
        problems.append("two autoscalers for the teachers")
    for budget in manifests.of("PodDisruptionBudget"):
        if "minAvailable" in budget["spec"] or budget["spec"].get("maxUnavailable") != 1:
            problems.append(f"{name(budget)}: not maxUnavailable 1; a single replica would block drains")
    for document in manifests.documents:
        if document["kind"] != "Namespace" and document["metadata"].get("namespace") != "distillery":
            problems.append(f"{name(document)}: in another namespace than distillery")
    return problems


def _pods_for_policies(manifests):
    ours = {"kubernetes.io/metadata.name": "distillery"}
    pods = {}
    for workload in manifests.workloads():
        ports = {p["name"]: p["containerPort"] for c in pod(workload)["containers"] for p in c.get("ports", [])}
        pods[labels(workload)["app.kubernetes.io/component"]] = (ours, labels(workload), ports)
    pods["stranger"] = (ours, {"app": "stranger"}, {})  # somebody else's pod in our namespace
    pods["prometheus"] = ({"kubernetes.io/metadata.name": "monitoring"}, {"app.kubernetes.io/name": "prometheus"}, {})
    pods["dns"] = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"}, {})
    pods["api-server"] = ({"kubernetes.io/metadata.name": "kube-system"}, {"component": "kube-apiserver"}, {})
    # One that carries our labels, in another namespace: labels alone must not let it in.
    pods["impostor"] = ({"kubernetes.io/metadata.name": "default"}, dict(pods["student"][1]), {})
    return pods


def _allows(rules, peers_key, other, own_ports, protocol, port):
    namespace, other_labels, other_ports = other
    for rule in rules or []:
        peers = rule.get(peers_key)
        matches = peers is None
        for peer in peers or []:
            in_namespace = (
                selects(peer["namespaceSelector"], namespace)
                if "namespaceSelector" in peer
                else namespace.get("kubernetes.io/metadata.name") == "distillery"
            )
            matches |= in_namespace and selects(peer.get("podSelector", {}), other_labels)
        if not matches:
            continue
        if rule.get("ports") is None:
            return True
        for allowed in rule["ports"]:
            number = allowed.get("port")
            if isinstance(number, str):
                number = (own_ports if peers_key == "from" else other_ports).get(number)
                if number is None:
                    continue
            if allowed.get("protocol", "TCP") == protocol and (
                number is None or number <= port <= allowed.get("endPort", number)
            ):
                return True
    return False


def check_network(manifests):
    """Every pair of pods, on every port that matters, either way: open if and only if CONNECTIONS says so."""
    problems, policies, pods = [], manifests.of("NetworkPolicy"), _pods_for_policies(manifests)
    ours = {
        component
        for component, (namespace, _, _) in pods.items()
        if namespace["kubernetes.io/metadata.name"] == "distillery"
    }

    def side(component, direction, other, protocol, port):
        namespace, own_labels, own_ports = pods[component]
        if component not in ours:
            return True  # their policies are not ours to know
        applying = [
            p["spec"]
            for p in policies
            if direction in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], own_labels)
        ]
        if not applying:
            return True
        key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
        return any(_allows(spec.get(key), peers, pods[other], own_ports, protocol, port) for spec in applying)

    numbers = sorted({22, 53, 443, 1024, 7069, 7070, 7071, 7072, 8080, 32767, 32768, 50000, 60999, 61000, 65535})
    for source in pods:
        for target in pods:
            if source not in ours and target not in ours:
                continue
            for protocol in ("TCP", "UDP"):
                for port in numbers:
                    is_open = side(source, "Egress", target, protocol, port) and side(
                        target, "Ingress", source, protocol, port
                    )
                    wanted = any(
                        source == s and target == t and protocol == p and first <= port <= last
                        for s, t, p, first, last in CONNECTIONS
                    )
                    if is_open != wanted:
                        problems.append(
                            f"{source} -> {target} {protocol} {port}: {'open' if is_open else 'closed'}, "
                            f"and the design {'needs it' if wanted else 'does not need it'}"
                        )
    return problems


def check_grace(manifests, programs):
    problems = []
    for workload in manifests.workloads():
        program = runs(workload)
        if program not in ("distill-teacher", "distill-student"):
            continue
        grace = float(configuration(manifests, workload)[0].get("grace", programs.defaults[program]["grace"]))
        given = pod(workload).get("terminationGracePeriodSeconds", 30)
        if given < grace + 10:
            problems.append(
                f"{name(workload)}: terminationGracePeriodSeconds {given} is less than 10 s longer than --grace {grace:g}"
            )
    return problems


def check_security(manifests):
    """The Pod Security Standard "restricted", which the namespace enforces, and a read-only root."""
    problems = []
    for namespace in manifests.of("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            problems.append(f"{name(namespace)}: does not enforce restricted pods")
    for workload in manifests.workloads():
        spec = pod(workload)
        context = spec.get("securityContext", {})
        if (
            context.get("runAsNonRoot") is not True
            or (context.get("runAsUser"), context.get("runAsGroup"), context.get("fsGroup")) != (10001,) * 3
        ):
            problems.append(f"{name(workload)}: does not run as user and group 10001")
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            problems.append(f"{name(workload)}: no seccomp profile")
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                problems.append(f"{name(workload)}: {key}")
        if spec.get("automountServiceAccountToken") is not False:
            problems.append(f"{name(workload)}: mounts a token for the API server")
        for volume in spec.get("volumes", []):
            if not set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}:
                problems.append(f"{name(workload)}: volume {volume} is not of a restricted kind")
        for container in containers(workload):
            own = container.get("securityContext", {})
            where = f'{name(workload)}, container {container["name"]}'
            if (
                own.get("allowPrivilegeEscalation") is not False
                or own.get("capabilities") != {"drop": ["ALL"]}
                or own.get("privileged")
            ):
                problems.append(f"{where}: not restricted: {own}")
            if own.get("readOnlyRootFilesystem") is not True:
                problems.append(f"{where}: its root can be written to")
    return problems


def check_resources(manifests, gpu):
    problems = []
    tag = "cuda" if gpu else "cpu"  # scripts/images.sh --variant
    for workload in manifests.workloads():
        component = labels(workload)["app.kubernetes.io/component"]
        image = f'distillery/{"coordinator" if component == "loader" else component}:{tag}'
        for container in containers(workload):
            where = f'{name(workload)}, container {container["name"]}'
            requests, limits = (container["resources"].get(k, {}) for k in ("requests", "limits"))
            if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
                problems.append(
                    f"{where}: requests {requests}, limits {limits}; cpu, memory and a limit of memory are wanted"
                )
            if container["image"] != image:
                problems.append(f'{where}: image {container["image"]}, not {image}')
        main = pod(workload)["containers"][0]
        wants_gpu = gpu and component in ("teacher", "student")
        if (main["resources"].get("limits", {}).get("nvidia.com/gpu") == "1") != wants_gpu or (
            "--device=cuda" in main.get("args", [])
        ) != wants_gpu:
            problems.append(f"{name(workload)}: GPU of overlay and pod differ: {main['resources']} {main.get('args')}")
        if component == "student":
            shm = mount_of(main, "/dev/shm")
            volume = shm and next((v for v in pod(workload)["volumes"] if v["name"] == shm["name"]), None)
            if not volume or volume.get("emptyDir", {}).get("medium") != "Memory":
                problems.append(f"{name(workload)}: /dev/shm is not memory")
    return problems


def check_failure_policy(manifests):
    """Students as a Job: it must give up for exactly the exit codes that docs/services.md calls useless to retry."""
    problems = []
    for job in manifests.of("Job"):
        if pod(job).get("restartPolicy") != "Never":
            problems.append(f"{name(job)}: a pod failure policy needs restartPolicy Never")
        rules = job["spec"].get("podFailurePolicy", {}).get("rules", [])
        if not rules or rules[0] != {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }:
            problems.append(f"{name(job)}: disruptions are not ignored first")
        fail = [r["onExitCodes"] for r in rules if r["action"] == "FailJob" and "onExitCodes" in r]
        codes = {c for r in fail for c in r["values"] if r["operator"] == "In"}
        if codes != exit_codes_not_to_retry():
            problems.append(
                f"{name(job)}: fails on exit codes {sorted(codes)}, docs/services.md says not to retry {sorted(exit_codes_not_to_retry())}"
            )
        for rule in fail:
            if rule.get("containerName") not in [c["name"] for c in pod(job)["containers"]]:
                problems.append(f'{name(job)}: no container {rule.get("containerName")} whose exit code could count')
    return problems


def check_metrics(manifests, metrics):
    """What the autoscalers read must be a metric in `metrics`."""
    problems = []
    named = []
    for scaler in manifests.of("HorizontalPodAutoscaler"):
        named += [(scaler, m["pods"]["metric"]["name"]) for m in scaler["spec"]["metrics"]]
    for scaler in manifests.of("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            named += [(scaler, metric) for metric in re.findall(r"distill_[a-z_]+", trigger["metadata"]["query"])]
            if f'namespace="{scaler["metadata"]["namespace"]}"' not in trigger["metadata"]["query"]:
                problems.append(f"{name(scaler)}: its query is not limited to its namespace")
    for scaler in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        if not any(s is scaler for s, _ in named):
            problems.append(f"{name(scaler)}: reads no metric of ours")
    for scaler, metric in named:
        if metric not in metrics:
            problems.append(f"{name(scaler)}: no metric {metric}")
    return problems


def all_checks(manifests, programs, gpu, metrics):
    return (
        check_references(manifests)
        + check_flags(manifests, programs)
        + check_ports(manifests)
        + check_selectors(manifests)
        + check_network(manifests)
        + check_grace(manifests, programs)
        + check_security(manifests)
        + check_resources(manifests, gpu)
        + check_failure_policy(manifests)
        + check_metrics(manifests, metrics)
    )
