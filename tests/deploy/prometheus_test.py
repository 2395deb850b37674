#!/usr/bin/env python3
"""deploy/prometheus: configuration and rules are valid, every alert fires when it should and is silent when not, has a
runbook entry, and reads only metrics that docs/services.md names (which a test of its own holds to the code)."""
import pathlib
import re
import subprocess
import sys

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from operations_cluster import SOURCE, tool
from prometheus_names import documented, metrics_in, recorded, unknown

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = SOURCE / "deploy/prometheus"


def promtool(*arguments):
    result = subprocess.run([tool("promtool"), *map(str, arguments)], cwd=HERE, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"promtool {' '.join(map(str, arguments))}:\n{result.stdout}{result.stderr}")


def main():
    promtool("check", "config", "--lint=all", "--lint-fatal", FOLDER / "prometheus.yml")
    promtool("test", "rules", HERE / "prometheus_alerts.yml")

    rules = [rule for path in sorted((FOLDER / "rules").glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) > 15 and len(alerts) == len({rule["alert"] for rule in alerts}), "alerts have names of their own"

    cases = [case for test in yaml.safe_load((HERE / "prometheus_alerts.yml").read_text())["tests"] for case in test.get("alert_rule_test", [])]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]} | {"DistillWatchdog"}  # it fires always
    guide = (SOURCE / "docs/operations.md").read_text()
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ +(.+?)\s*$", guide, re.M)}
    problems = []
    for rule in alerts:
        name, notes = rule["alert"], rule["annotations"]
        if name not in fires: problems.append(f"{name}: no test in which it fires")
        if name not in silent: problems.append(f"{name}: no test in which it stays silent")
        if rule["labels"].get("severity") not in ("critical", "warning", "none"): problems.append(f"{name}: severity")
        for key in ("summary", "description", "runbook"):
            if not notes.get(key): problems.append(f"{name}: no {key}")
        page, _, anchor = notes["runbook"].partition("#")
        if page != "docs/operations.md" or anchor not in anchors: problems.append(f"{name}: {notes['runbook']} does not exist")
    for name in fires | silent:
        if name not in {rule["alert"] for rule in alerts}: problems.append(f"{name} is tested and does not exist")
    known = documented() | recorded()
    for rule in rules:
        strangers = unknown(metrics_in(rule["expr"]), known)
        if strangers: problems.append(f"{rule.get('alert') or rule['record']}: unknown to the code: {', '.join(sorted(strangers))}")
    for heading in re.findall(r"^#+ +(Distill\w+)", guide, re.M):
        if heading not in {rule["alert"] for rule in alerts}: problems.append(f"docs/operations.md has an entry for {heading}, which is no alert")
    for name in re.findall(r"`((?:distill|process)_[a-z_]+|[a-z]+:distill[a-z_:0-9]+)`", guide):
        if unknown({name}, known): problems.append(f"docs/operations.md: metric {name} does not exist")
    for target in re.findall(r"\]\(([^)]+)\)", guide):
        page, _, anchor = target.partition("#")
        if page and not (SOURCE / "docs" / page).exists(): problems.append(f"docs/operations.md: {page} does not exist")
        if not page and anchor not in anchors: problems.append(f"docs/operations.md: #{anchor} does not exist")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(alerts)} alerts, {len(rules) - len(alerts)} recording rules")


if __name__ == "__main__":
    main()
