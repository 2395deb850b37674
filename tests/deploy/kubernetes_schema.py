"""Renders the overlays of deploy/kubernetes and validates them against the schemas of several Kubernetes versions,
offline.

    kubernetes_schema.py [--render] [--kustomize 'COMMAND...']

--kustomize   the command that builds an overlay (`kubectl kustomize`). Without it the committed renderings are
              validated, after a look at whether they were made from the sources that are here.
--render      writes deploy/kubernetes/rendered instead of comparing with it.
"""

import argparse
import shlex
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml

import kubernetes_checks as checks

# Oldest: the first in which all we use is stable (pod failure policy). Newest: what the validator has.
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")


def _closed(required, **properties):
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXT, _COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
_DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
_POLICY = _closed(
    ["stabilizationWindowSeconds", "policies"],
    stabilizationWindowSeconds=_COUNT,
    policies={
        "type": "array",
        "items": _closed(
            ["type", "value", "periodSeconds"], type={"enum": ["Pods", "Percent"]}, value=_COUNT, periodSeconds=_COUNT
        ),
    },
)
# Kinds that Kubernetes itself does not define. Their structure as we use it, after the projects' API references;
# strict, so that a field that is not listed here has to be looked up and added.
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): _closed(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=_closed(["name"], apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
        minReplicaCount=_COUNT,
        maxReplicaCount=_COUNT,
        pollingInterval=_COUNT,
        fallback=_closed(["failureThreshold", "replicas"], failureThreshold=_COUNT, replicas=_COUNT),
        advanced=_closed(
            [], horizontalPodAutoscalerConfig=_closed([], behavior=_closed([], scaleUp=_POLICY, scaleDown=_POLICY))
        ),
        triggers={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                ["type", "metadata"],
                type={"const": "prometheus"},
                name=_TEXT,
                metricType={"enum": ["AverageValue", "Value"]},
                metadata=_closed(
                    ["serverAddress", "query", "threshold"], serverAddress=_TEXT, query=_TEXT, threshold=_TEXT
                ),
            ),
        },
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): _closed(
        ["selector", "podMetricsEndpoints"],
        selector=_closed(["matchLabels"], matchLabels={"type": "object", "additionalProperties": _TEXT}),
        podMetricsEndpoints={
            "type": "array",
            "minItems": 1,
            "items": _closed(["port"], port=_TEXT, path=_TEXT, interval=_DURATION, scrapeTimeout=_DURATION),
        },
    ),
}


def header(overlay):
    return (
        f"# deploy/kubernetes/overlays/{overlay} as Kustomize builds it. Do not edit: scripts/check_deploy.sh --render writes it.\n"
        f"# sources: sha256 {checks.source_digest()}\n"
    )


def key(document):
    return (
        document["apiVersion"],
        document["kind"],
        document["metadata"].get("namespace", ""),
        document["metadata"]["name"],
    )


def documents(text):
    return {key(d): d for d in yaml.safe_load_all(text) if d}


def compare(overlay, built, committed):
    """Problems of a committed rendering. By content: versions of Kustomize differ in order and line breaks."""
    if not committed.startswith(header(overlay)):
        yield f"deploy/kubernetes/rendered/{overlay}.yaml was made from other sources; run scripts/check_deploy.sh --render"
    if built is None:
        return
    have, want = documents(committed), documents(built)
    for missing in sorted(set(want) - set(have)):
        yield f"rendered/{overlay}.yaml lacks {missing}; run scripts/check_deploy.sh --render"
    for extra in sorted(set(have) - set(want)):
        yield f"rendered/{overlay}.yaml has {extra}, which the overlay has not; run scripts/check_deploy.sh --render"
    for same in sorted(set(have) & set(want)):
        if have[same] != want[same]:
            yield f"rendered/{overlay}.yaml: {same} differs from what Kustomize builds; run scripts/check_deploy.sh --render"


def validate(document, version):
    """Problems of one document of Kubernetes' own kinds."""
    where = f'{document["kind"]} {document["metadata"]["name"]}, Kubernetes {version}'
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f'{where}: {".".join(map(str, error.path))}: {error.message}'
    except kubernetes_validate.SchemaNotFoundError:
        yield f'{where}: the validator has no schema for {document["apiVersion"]} {document["kind"]}'


def validate_custom(document):
    where = f'{document["kind"]} {document["metadata"]["name"]}'
    if set(document) != {"apiVersion", "kind", "metadata", "spec"}:
        yield f"{where}: top-level fields {sorted(document)}"
    for error in jsonschema.Draft202012Validator(CUSTOM[document["apiVersion"], document["kind"]]).iter_errors(
        document.get("spec")
    ):
        yield f'{where}: spec.{".".join(map(str, error.absolute_path))}: {error.message}'


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--kustomize", default="")
    options = parser.parse_args()
    rendered = checks.TREE / "rendered"
    problems, custom, count = [], set(), 0
    for overlay in checks.overlays():
        built = None
        if options.kustomize:
            run = subprocess.run(
                shlex.split(options.kustomize) + [str(checks.TREE / "overlays" / overlay)],
                capture_output=True,
                text=True,
                timeout=120,
            )
            if run.returncode != 0 or run.stderr:  # a warning is a field that a coming version drops
                problems.append(f"overlays/{overlay}: {run.stderr.strip()}")
            if run.returncode != 0:
                continue
            built = run.stdout
        path = rendered / f"{overlay}.yaml"
        if options.render:
            rendered.mkdir(exist_ok=True)
            path.write_text(header(overlay) + built)
        if not path.is_file():
            problems.append(f"{path.relative_to(checks.ROOT)} is missing; run scripts/check_deploy.sh --render")
            continue
        problems += compare(overlay, built, path.read_text())
        for document in documents(path.read_text()).values():
            count += 1
            if (document["apiVersion"], document["kind"]) in CUSTOM:
                custom.add(f'{document["kind"]} ({document["apiVersion"]})')
                problems += validate_custom(document)
            else:
                for version in VERSIONS:
                    problems += [f"overlays/{overlay}: {p}" for p in validate(document, version)]
    for path in rendered.glob("*.yaml"):
        if path.stem not in checks.overlays():
            problems.append(f"{path.relative_to(checks.ROOT)} belongs to no overlay; delete it")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{count} documents of {len(checks.overlays())} overlays, strictly, against Kubernetes {', '.join(VERSIONS)}")
    print(f"not covered by these schemas, checked against our own: {', '.join(sorted(custom))}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
