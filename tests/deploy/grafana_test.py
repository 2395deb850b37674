#!/usr/bin/env python3
"""The Grafana dashboards.

    grafana_test.py                  what can be said of the files: they are what dashboards.py writes, the rules of
                                     Grafana's dashboard-linter hold, the queries are valid, the metrics exist in
                                     docs/services.md
    grafana_test.py --live BINARIES  runs a real job under a real Prometheus and asks every query of every panel, every
                                     variable and every recording rule for data; compares the metrics used with those
                                     the programs expose
"""
import json
import re
import subprocess
import sys
import tempfile
import time
import pathlib

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from operations_cluster import SOURCE, Cluster, job_text, tool, wait_for
from prometheus_names import SUFFIX, documented, metrics_in, recorded, unknown

FOLDER = SOURCE / "deploy/grafana"
COUNTERS = re.compile(r"(_total|_sum|_count|_bucket)$")
# Queries that cannot carry the matchers of job and instance, and why.
NO_MATCHERS = {("distill-fleet", "Alerts firing"): "alerts are not always about one instance"}

# Series that a student drops when a job ends, so that they are not there afterwards.
WHILE_RUNNING = {"distill_student_loss_term"}


def dashboards():
    found = [json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))]
    assert len(found) >= 5, "fleet, job, teacher, wire, step"
    return found


def queries():
    for board in dashboards():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield board, panel, target


def substituted(expr, interval="30s", span="5m"):
    values = {"$job": ".+", "$instance": ".+", "$__rate_interval": interval, "$__range": span, "$__interval": interval}
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(name, values[name])
    assert "$" not in expr, f"unknown variable in {expr}"
    return expr


def lint():
    """The rules of Grafana's dashboard-linter that apply, and ours."""
    problems = []
    uids = [board["uid"] for board in dashboards()]
    if len(set(uids)) != len(uids): problems.append("dashboards share a uid")
    for board in dashboards():
        where = board["uid"]
        def bad(what, where=where): problems.append(f"{where}: {what}")
        variables = {v["name"]: v for v in board["templating"]["list"]}
        if variables["datasource"]["type"] != "datasource" or variables["datasource"]["label"] != "Data Source": bad("template-datasource")
        for name in ("job", "instance"):
            v = variables[name]
            if not (v["type"] == "query" and v["datasource"]["uid"] == "${datasource}" and v["multi"] and v["includeAll"] and v["allValue"] == ".+"
                    and v["refresh"] == 2 and v["label"] and v["query"]["query"].startswith("label_values(")): bad(f"template-{name}")
        if board["editable"]: bad("uneditable")
        if not board["description"]: bad("description")
        ids = [panel["id"] for panel in board["panels"]]
        if len(set(ids)) != len(ids): bad("panels share an id")
        cells = set()
        for panel in board["panels"]:
            where = f"{board['uid']} / {panel['title']}"
            grid = panel["gridPos"]
            for cell in ((x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])):
                if cell in cells or cell[0] >= 24: problems.append(f"{where}: overlaps or leaves the grid"); break
                cells.add(cell)
            if not panel["title"] or len(panel["description"]) < 15: problems.append(f"{where}: title and description")
            if not panel["fieldConfig"]["defaults"].get("unit"): problems.append(f"{where}: unit")
            if panel["datasource"]["uid"] != "${datasource}": problems.append(f"{where}: data source is not the variable")
            if not panel["targets"]: problems.append(f"{where}: no targets")
            for target in panel["targets"]:
                expr = target["expr"]
                if target["datasource"]["uid"] != "${datasource}": problems.append(f"{where}: a target's data source")
                if not target["legendFormat"]: problems.append(f"{where}: legend")
                if panel["type"] == "timeseries" and re.search(r"by \([^)]*(instance|part|kind|state|result|term|metric|outcome)", expr) and "{{" not in target["legendFormat"]:
                    problems.append(f"{where}: the legend does not tell the series apart")
                for matchers in re.findall(r"\{([^}]*)\}", expr):
                    if (board["uid"], panel["title"]) in NO_MATCHERS: continue
                    if 'job=~"$job"' not in matchers or 'instance=~"$instance"' not in matchers: problems.append(f"{where}: {{{matchers}}} lacks job or instance")
                for name in metrics_in(expr):
                    if (board["uid"], panel["title"]) not in NO_MATCHERS and not re.search(re.escape(name) + r"\{", expr): problems.append(f"{where}: {name} has no matchers")
                for function, argument, window in re.findall(r"\b(rate|irate|increase)\((\w+)(?:\{[^}]*\})?\[([^\]]+)\]\)", expr):
                    if not COUNTERS.search(argument): problems.append(f"{where}: {function}() of {argument}, which is no counter")
                    if function == "rate" and window != "$__rate_interval": problems.append(f"{where}: rate over {window}, not $__rate_interval")
                for name in metrics_in(expr):
                    if COUNTERS.search(name) and panel["title"] != "Losses not finite" and not re.search(r"\b(rate|irate|increase)\(" + name + r"\b", expr):
                        problems.append(f"{where}: counter {name} outside rate() and increase()")
                strangers = unknown(metrics_in(expr), documented() | recorded())
                if strangers: problems.append(f"{where}: not in docs/services.md: {', '.join(strangers)}")
    return problems


def offline():
    subprocess.run([sys.executable, FOLDER / "dashboards.py", "--check"], check=True)
    problems = lint()
    rules = {"groups": [{"name": "panels", "rules": [
        {"record": f"panel:{i}", "expr": substituted(target["expr"])} for i, (_, _, target) in enumerate(queries())]}]}
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(json.dumps(rules)), file.flush()
        checked = subprocess.run([tool("promtool"), "check", "rules", file.name], capture_output=True, text=True)
    if checked.returncode != 0: problems.append(checked.stdout + checked.stderr)
    source = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    if source["type"] != "prometheus" or source["url"] != "http://prometheus:9090": problems.append("the provisioned data source")
    scrape = yaml.safe_load((SOURCE / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    if source["jsonData"]["timeInterval"] != scrape: problems.append(f"the data source's timeInterval is not the scrape interval {scrape}")
    if problems: sys.exit("\n".join(problems))
    print(f"{sum(1 for _ in queries())} queries on {len(dashboards())} dashboards")


def has_number(series):
    return any(value != "NaN" for one in series for _, value in one.get("values", [one["value"]] if "value" in one else []))


def without_data(prometheus, start, end):
    """Queries of panels, and recording rules, that gave nothing but NaN at any time of the run."""
    for board, panel, target in queries():
        expr = substituted(target["expr"], "10s", f"{int(end - start) + 1}s")
        if not has_number(prometheus.query(expr, end) if target["instant"] else prometheus.range(expr, start, end, 1)):
            yield f"{board['uid']} / {panel['title']}: {expr}"
    for name in recorded():
        if not has_number(prometheus.range(name, start, end, 1)): yield f"recording rule {name}"


def live(binaries):
    with tempfile.TemporaryDirectory(prefix="distill-grafana-") as folder, Cluster(binaries, folder, tls=True) as cluster:
        cluster.start_coordinator()
        for name in ("teacher-0", "teacher-1"): cluster.start_teacher(name)
        for name in ("student-0", "student-1"): cluster.start_student(name)
        prometheus = cluster.start_prometheus({"distill-coordinator": ["coordinator"], "distill-teacher": ["teacher-0", "teacher-1"],
                                               "distill-student": ["student-0", "student-1"]})
        wait_for("all targets are scraped", lambda: len(prometheus.query("up == 1")) == 5)
        start = time.time()
        problems = []
        # The first job makes series that a rate shows only when they grow once more, and a fast one may slip between
        # two scrapes: so the same job runs until every query has had data, at most four times.
        for number in range(1, 5):
            cluster.wait_job(cluster.submit(job_text("grafana", 2, 6, 24, checkpoint_every=10)))
            wait_for("its end was scraped", lambda: prometheus.query(f'distill_coordinator_jobs_ended_total{{state="succeeded"}} == {number}'))
            end = time.time()
            empty = list(without_data(prometheus, start, end))
            if not empty: break
        problems += [f"no data: {line}" for line in empty]

        exposed = {}
        for name in ("coordinator", "teacher-0", "student-0", "student-1"):  # rank 0 alone shows the teacher's score
            exposed.update(re.findall(r"^# TYPE (\w+) (\w+)$", cluster.metrics(name), re.M))
        for board, panel, target in queries():
            where = f"{board['uid']} / {panel['title']}"
            for name in metrics_in(target["expr"]) - {"up", "ALERTS"}:
                base = name if name in exposed else SUFFIX.sub("", name)
                if base not in exposed and name not in WHILE_RUNNING: problems.append(f"{where}: no program exposes {name}")
            for argument in re.findall(r"\b(?:rate|irate|increase)\((\w+)", target["expr"]):
                kind = exposed.get(argument) or exposed.get(SUFFIX.sub("", argument))
                if kind not in ("counter", "histogram"): problems.append(f"{where}: rate of {argument}, a {kind}")
        for board in dashboards():
            for variable in board["templating"]["list"]:
                if variable["type"] != "query": continue
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", substituted(variable["query"]["query"])).groups()
                if not [s for s in prometheus.query(f"count by ({label}) ({metric})", end) if s["metric"].get(label)]:
                    problems.append(f"{board['uid']}: variable {variable['name']} has no values")
        for name in documented():
            if name not in exposed and name not in WHILE_RUNNING: problems.append(f"docs/services.md names {name}, which no program exposes")
        groups = prometheus.get("/api/v1/rules")["groups"]
        for rule in (rule for group in groups for rule in group["rules"]):
            if rule["health"] != "ok": problems.append(f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            # This machine's disk may be full; everything else is healthy here.
            if rule["type"] == "alerting" and (rule["state"] == "firing") != (rule["name"] == "DistillWatchdog") and rule["name"] != "DistillDiskFilling":
                problems.append(f"alert {rule['name']} is {rule['state']} in a healthy run")
        if problems: sys.exit("\n".join(problems))
        print(f"{sum(1 for _ in queries())} queries gave data after {number} jobs in {end - start:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--live"]:
        live(sys.argv[2])
    else:
        offline()
