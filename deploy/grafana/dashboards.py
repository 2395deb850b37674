#!/usr/bin/env python3
"""Writes the Grafana dashboards in deploy/grafana/dashboards. The JSON is committed; tests/deploy/grafana_test.py holds
both together.

    deploy/grafana/dashboards.py            write the files
    deploy/grafana/dashboards.py --check    fail if a file differs from what would be written

In a query, `@` inside braces stands for the matchers of the variables `job` and `instance`.
"""
import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "dashboards"
MATCHERS = 'job=~"$job", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # columns of Grafana's grid


class Query:
    def __init__(self, expr, legend, format="time_series", instant=False):
        self.expr = expr.replace("@", MATCHERS)
        self.legend = legend
        self.format = format
        self.instant = instant

    def target(self, ref):
        return {"datasource": DATASOURCE, "refId": ref, "expr": self.expr, "legendFormat": self.legend, "format": self.format,
                "instant": self.instant, "range": not self.instant, "editorMode": "code"}


class Panel:
    """`description` says what the panel shows and what to make of it; `unit` is a Grafana unit id."""

    def __init__(self, title, description, unit, queries, kind="timeseries", width=8, height=8, stack=False, max=None, thresholds=None):
        self.title, self.description, self.unit, self.kind = title, description, unit, kind
        self.queries = queries if isinstance(queries, list) else [queries]
        self.width, self.height, self.stack, self.max, self.thresholds = width, height, stack, max, thresholds

    def model(self, number, x, y):
        defaults = {"unit": self.unit}
        if self.kind == "timeseries":
            defaults["min"] = 0
            defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 40 if self.stack else 8, "showPoints": "never",
                                  "stacking": {"mode": "normal" if self.stack else "none", "group": "A"}}
        if self.max is not None:
            defaults["max"] = self.max
        if self.thresholds:
            defaults["color"] = {"mode": "thresholds"}
            defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in self.thresholds]}
        options = {
            "timeseries": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}},
            "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value", "graphMode": "area"},
            "table": {"showHeader": True},
            "heatmap": {"calculate": False, "yAxis": {"unit": self.unit}, "color": {"mode": "scheme", "scheme": "Blues"}},
        }[self.kind]
        model = {"id": number, "type": self.kind, "title": self.title, "description": self.description, "datasource": DATASOURCE,
                 "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
                 "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
                 "targets": [query.target(chr(ord("A") + i)) for i, query in enumerate(self.queries)]}
        if self.kind == "table":
            model["transformations"] = [{"id": "labelsToFields", "options": {"mode": "columns"}}, {"id": "merge", "options": {}}]
        return model


def stat(title, description, unit, query, thresholds=None, width=4):
    return Panel(title, description, unit, query, "stat", width, 4, thresholds=thresholds)


def variable(name, label, query):
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE, "query": {"query": query, "refId": name},
            "definition": query, "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".+",
            "current": {"text": "All", "value": "$__all"}, "options": [], "hide": 0}


def dashboard(uid, title, description, metric, panels):
    """`metric`: one that every target of interest has; gives the values of `job` and `instance`."""
    models, x, y, row = [], 0, 0, 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y = 0, y + row
            row = 0
        models.append(panel.model(len(models) + 1, x, y))
        x, row = x + panel.width, max(row, panel.height)
    return {
        "uid": f"distill-{uid}", "title": f"Distillery / {title}", "description": description, "tags": ["distillery"], "schemaVersion": 39,
        "version": 1, "editable": False, "graphTooltip": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "",
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Distillery", "tags": ["distillery"], "asDropdown": True, "includeVars": False, "keepTime": True}],
        "templating": {"list": [
            {"name": "datasource", "label": "Data Source", "type": "datasource", "query": "prometheus", "refresh": 1, "multi": False,
             "includeAll": False, "current": {}, "options": [], "hide": 0},
            variable("job", "Job", f"label_values({metric}, job)"),
            variable("instance", "Instance", f'label_values({metric}{{job=~"$job"}}, instance)'),
        ]},
        "panels": models,
    }


def quantiles(metric, by, legend):
    return [Query(f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{@}}[$__rate_interval])))", f"{legend} p{int(q * 100)}")
            for q in (0.5, 0.95)]


def fleet():
    red_above_zero = [(None, "green"), (1, "red")]
    return dashboard("fleet", "Fleet", "Who is there, who is alive, and what the coordinator is doing.", "distill_build_info", [
        stat("Services up", "Processes that answered the last scrape.", "short", Query("sum(up{@})", "up")),
        stat("Services down", "Processes known to Prometheus that did not answer the last scrape. Alert: DistillTargetDown.", "short",
             Query("sum(1 - up{@})", "down"), red_above_zero),
        stat("Alerts firing", "Alerts of deploy/prometheus/rules that fire now, the watchdog left out. Prometheus' page /alerts names them.", "short",
             Query('count(ALERTS{alertstate="firing", alertname=~"Distill.+", alertname!="DistillWatchdog"}) or vector(0)', "firing"), red_above_zero),
        stat("Jobs without a teacher", "Jobs that stand still because no live worker serves the teacher that their stage reads.", "short",
             Query("sum(distill_coordinator_jobs_without_teacher{@})", "jobs"), red_above_zero),
        stat("Coordinator starts", "Times a coordinator was started on this store.", "short", Query("max(distill_coordinator_epoch{@})", "epoch")),
        stat("Certificate that ends first", "Time until the first certificate or authority in use ends. No value without TLS. Renew with scripts/make_certs.sh.",
             "s", Query("min(distill_tls_certificate_expiry_timestamp_seconds{@}) - time()", "left"), [(None, "red"), (14 * 86400, "green")]),
        Panel("Workers", "Registered workers by kind and state. `lost`: silent for longer than a lease; listed for ten minutes. `stuck`: hangs in a job that"
              " was taken away. `cordoned`: three jobs failed by its own fault. Alerts: DistillWorkerStuck, DistillWorkerCordoned.", "short",
              Query("sum by (kind, state) (distill_coordinator_workers{@})", "{{kind}} {{state}}")),
        Panel("Jobs", "Jobs that have not ended. Long queues: too few students, or a job that waits for a teacher.", "short",
              Query("sum by (state) (distill_coordinator_jobs{@})", "{{state}}")),
        Panel("Jobs ended", "Jobs that ended within the interval, by how.", "short",
              Query("sum by (state) (increase(distill_coordinator_jobs_ended_total{@}[$__rate_interval]))", "{{state}}")),
        Panel("Group changes", "Groups of ranks formed or lost, per second. Each job's start counts one; more means that ranks get lost.", "ops",
              Query("sum by (instance) (rate(distill_coordinator_generation_changes_total{@}[$__rate_interval]))", "{{instance}}")),
        Panel("Heartbeats", "Heartbeats answered by the coordinator; one a second and worker by default.", "ops",
              Query("sum by (kind) (rate(distill_coordinator_heartbeats_total{@}[$__rate_interval]))", "{{kind}}")),
        Panel("Store writes", "Time of a write transaction of the job store. Above 100 ms: the state folder is on a slow or remote disk.", "s",
              quantiles("distill_coordinator_commit_seconds", "instance", "{{instance}}")),
        Panel("CPU", "Cores in use by each process. A teacher at its --threads, or a student at its job's `threads`, is bound by compute.", "short",
              Query("sum by (job, instance) (rate(process_cpu_seconds_total{@}[$__rate_interval]))", "{{job}} {{instance}}")),
        Panel("Memory", "Resident memory of each process. Students hold their data set in memory.", "bytes",
              Query("sum by (job, instance) (process_resident_memory_bytes{@})", "{{job}} {{instance}}")),
        Panel("Free disk", "Share of the file system below the state folder (coordinator) and work folders (students) that is free. Alert at 10 %.",
              "percentunit", Query("distill_folder_free_bytes{@} / distill_folder_size_bytes{@}", "{{folder}} {{instance}}"), max=1),
        Panel("Uptime", "Time since each process started.", "s", Query("time() - process_start_time_seconds{@}", "{{job}} {{instance}}")),
        Panel("Submissions and commits", "Jobs submitted and stages committed per second, by result.", "ops", [
            Query("sum by (result) (rate(distill_coordinator_submissions_total{@}[$__rate_interval]))", "submit {{result}}"),
            Query("sum by (result) (rate(distill_coordinator_stage_commits_total{@}[$__rate_interval]))", "commit {{result}}")]),
        Panel("Versions", "Processes by version: one row after an upgrade is complete.", "short",
              Query("count by (job, version) (distill_build_info{@})", "{{job}} {{version}}", "table", True), "table"),
    ])


def job():
    return dashboard("job", "Job", "How training goes: losses, results on the test set, speed, checkpoints of the ranks that are running.", "distill_student_steps_total", [
        stat("Stage", "Index of the running stage, from 0.", "short", Query("max(distill_student_stage{@})", "stage")),
        stat("Ranks at work", "Students that hold a rank.", "short", Query("sum(distill_student_generation{@} > bool 0)", "ranks")),
        stat("Since the last step", "Age of the newest optimizer step. Growing: see the runbook of DistillNoProgress.", "s",
             Query("time() - max(distill_student_last_step_timestamp_seconds{@})", "age")),
        stat("Student on the test set", "Newest results of the student by metric: top1 and top5, or mean_iou and pixel_accuracy. No value before the first evaluation.", "percentunit",
             Query("max by (metric) (distill_student_score_ratio{@})", "{{metric}}")),
        stat("Teacher on the test set", "Results of the teacher by metric, measured once a job. No value in jobs without teacher.", "percentunit",
             Query("max by (metric) (distill_student_teacher_score_ratio{@})", "{{metric}}")),
        stat("Losses not finite", "Steps whose loss was NaN or infinite since the students started; each failed its job.", "short",
             Query("sum(distill_student_not_finite_losses_total{@})", "steps"), [(None, "green"), (1, "red")]),
        Panel("Loss", "Weighted sum of the stage's losses at the last step, mean over ranks. It jumps where a stage begins: other losses.", "short",
              Query("max(distill_student_loss{@})", "loss"), width=12),
        Panel("Loss terms", "Each loss of the stage, unweighted. A term that does not fall: its weight or its taps are wrong.", "short",
              Query("max by (term) (distill_student_loss_term{@})", "{{term}}"), width=12),
        Panel("Results over time", "Results of student and teacher on the test set by metric.", "percentunit", [
            Query("max by (metric) (distill_student_score_ratio{@})", "student, {{metric}}"),
            Query("max by (metric) (distill_student_teacher_score_ratio{@})", "teacher, {{metric}}")], max=1),
        Panel("Learning rate", "Learning rate of the last step: warm-up and decay start again with each stage.", "short",
              Query("max(distill_student_learning_rate{@})", "learning rate")),
        Panel("Images per second", "Images trained on, per rank.", "ops",
              Query("sum by (instance) (rate(distill_student_images_total{@}[$__rate_interval]))", "{{instance}}"), stack=True),
        Panel("Steps per second", "Optimizer steps of each rank; equal for the ranks of a job.", "ops",
              Query("sum by (instance) (rate(distill_student_steps_total{@}[$__rate_interval]))", "{{instance}}")),
        Panel("Generation", "Generation of the job each student takes part in; 0 when idle. It grows when ranks are lost.", "short",
              Query("max by (instance) (distill_student_generation{@})", "{{instance}}")),
        Panel("Stage over time", "Index of the stage each rank runs.", "short", Query("max by (instance) (distill_student_stage{@})", "{{instance}}")),
        Panel("Checkpoint time", "Time that rank 0 takes to write a checkpoint; the other ranks wait.", "s",
              quantiles("distill_student_checkpoint_seconds", "instance", "{{instance}}")),
        Panel("Checkpoint failures", "Checkpoints that could not be written, within the interval. Alert: DistillCheckpointFailing.", "short",
              Query("sum by (instance) (increase(distill_student_checkpoint_failures_total{@}[$__rate_interval]))", "{{instance}}")),
        Panel("Steps skipped", "Steps skipped within the interval because a teacher's map held NaN or infinity. Alert: DistillStepsSkipped.", "short",
              Query("sum by (instance) (increase(distill_student_skipped_steps_total{@}[$__rate_interval]))", "{{instance}}")),
        Panel("Assignments ended", "Assignments that students ended within the interval, by outcome.", "short",
              Query("sum by (outcome) (increase(distill_student_jobs_total{@}[$__rate_interval]))", "{{outcome}}")),
    ])


def teacher():
    return dashboard("teacher", "Teacher", "What teachers compute, and whether more of them are needed.", "distill_teacher_ready", [
        stat("Teachers ready", "Teachers that take batches.", "short", Query("sum(distill_teacher_ready{@})", "ready")),
        stat("Open streams", "Feature streams; one for each student and teacher of a running job.", "short", Query("sum(distill_teacher_streams{@})", "streams")),
        stat("Batches waiting", "Batches in the queues of all teachers.", "short", Query("sum(distill_teacher_queue_length{@})", "waiting")),
        stat("Images per second", "Images that all teachers computed.", "ops", Query("sum(rate(distill_teacher_images_total{@}[$__rate_interval]))", "images")),
        stat("Images per busy second", "What one teacher could do if it were busy all the time: the number for sizing.", "ops",
             Query("sum(rate(distill_teacher_images_total{@}[$__rate_interval])) / (sum(rate(distill_teacher_inference_seconds_sum{@}[$__rate_interval])) > 0)",
                   "images")),
        stat("Busy", "Mean share of the time in which a teacher computes; 100 %: add teachers.", "percentunit",
             Query("avg(sum by (instance) (rate(distill_teacher_inference_seconds_sum{@}[$__rate_interval])))", "busy")),
        Panel("Images", "Images computed by each teacher and model. Uneven: students send to the teacher that has least to do.", "ops",
              Query("sum by (instance, model) (rate(distill_teacher_images_total{@}[$__rate_interval]))", "{{instance}} {{model}}"), stack=True),
        Panel("Busy by teacher", "Share of the time in which a model's network runs. Near 1: saturated.", "percentunit",
              Query("sum by (instance, model) (rate(distill_teacher_inference_seconds_sum{@}[$__rate_interval]))", "{{instance}} {{model}}")),
        Panel("Queue", "Batches that wait for a model. Students keep several in flight, so a few are normal; growth is not.", "short",
              Query("sum by (instance, model) (distill_teacher_queue_length{@})", "{{instance}} {{model}}")),
        Panel("Time in the queue", "How long a batch waits for its model. Above the inference time: add teachers.", "s",
              quantiles("distill_teacher_queue_seconds", "model", "{{model}}")),
        Panel("Inference time", "One forward pass, with normalisation and casts.", "s", quantiles("distill_teacher_inference_seconds", "model", "{{model}}")),
        Panel("Images per forward pass", "After merging. With `deterministic: true` each request is computed alone.", "short",
              Query("sum by (instance, model) (rate(distill_teacher_batch_images_sum{@}[$__rate_interval]))"
                    " / (sum by (instance, model) (rate(distill_teacher_batch_images_count{@}[$__rate_interval])) > 0)", "{{instance}} {{model}}")),
        Panel("Requests", "Batches that ended, by result. `refused`: the client sent something that cannot be computed.", "ops",
              Query("sum by (result) (rate(distill_teacher_requests_total{@}[$__rate_interval]))", "{{result}}")),
        Panel("Inference time, all", "Distribution of the forward passes of all teachers.", "s",
              Query("sum by (le) (increase(distill_teacher_inference_seconds_bucket{@}[$__rate_interval]))", "{{le}}", "heatmap"), "heatmap"),
        Panel("Models", "Models served: name, network, digest of the weights. Two digests under one name: some teachers are not used.", "short",
              Query("count by (model, arch, digest) (distill_teacher_model_info{@})", "{{model}} {{arch}} {{digest}}", "table", True), "table"),
    ])


def wire():
    return dashboard("wire", "Wire", "Feature maps between teachers and students: bytes, latency, windows, failures.", "distill_build_info", [
        stat("Received", "Bytes of feature maps that all students receive.", "Bps", Query("sum(rate(distill_student_feature_bytes_total{@}[$__rate_interval]))", "received")),
        stat("Bytes per image", "Features of one image on the wire: the number for sizing. Fewer with wire_dtype f16 or fewer taps.", "bytes",
             Query("sum(rate(distill_student_feature_bytes_total{@}[$__rate_interval])) / (sum(rate(distill_student_images_total{@}[$__rate_interval])) > 0)", "bytes")),
        stat("Latency", "Mean time from asking for features to having all of them. It may be long: prefetching hides it.", "s",
             Query("sum(rate(distill_student_feature_latency_seconds_sum{@}[$__rate_interval]))"
                   " / (sum(rate(distill_student_feature_latency_seconds_count{@}[$__rate_interval])) > 0)", "latency")),
        stat("Requests that failed", "Share of the feature requests that ended with an error. Alert at 5 %.", "percentunit",
             Query('sum(rate(distill_student_feature_requests_total{@, result="error"}[$__rate_interval]))'
                   " / (sum(rate(distill_student_feature_requests_total{@}[$__rate_interval])) > 0)", "failed"), [(None, "green"), (0.05, "red")]),
        stat("Sent again", "Requests taken from a teacher unanswered and sent to another one, over the last hour. Teachers that die or drain cause them.", "short",
             Query("sum(increase(distill_student_feature_resends_total{@}[1h]))", "requests")),
        stat("Teachers connected", "Fewest teachers that a rank has an open stream to.", "short", Query("min(distill_student_teachers_connected{@})", "teachers")),
        Panel("Received by student", "Bytes of feature maps received. Near the network's bandwidth: fewer taps, wire_dtype f16, or teachers elsewhere.", "Bps",
              Query("sum by (instance) (rate(distill_student_feature_bytes_total{@}[$__rate_interval]))", "{{instance}}"), stack=True),
        Panel("Sent by teacher", "Bytes of feature maps handed to the transport.", "Bps",
              Query("sum by (instance) (rate(distill_teacher_sent_bytes_total{@}[$__rate_interval]))", "{{instance}}"), stack=True),
        Panel("Latency by student", "From asking for features to having all of them, waiting included.", "s",
              quantiles("distill_student_feature_latency_seconds", "instance", "{{instance}}")),
        Panel("Waiting for credit", "Share of the time in which computed features wait for their student's credit, all streams together. High while"
              " students wait for features: raise the job's `prefetch`.", "percentunit",
              Query("sum by (instance) (rate(distill_teacher_credit_wait_seconds_total{@}[$__rate_interval]))", "{{instance}}")),
        Panel("Window in use", "Bytes granted to teachers or received and not yet used. At the job's `prefetch` the window is full.", "bytes",
              Query("sum by (instance) (distill_student_feature_inflight_bytes{@})", "{{instance}}")),
        Panel("Open streams", "Teachers each student has an open stream to.", "short",
              Query("sum by (instance) (distill_student_teachers_connected{@})", "{{instance}}")),
        Panel("Requests by result", "Feature requests that ended, by result. `cancelled` at the end of a stage is normal.", "ops",
              Query("sum by (result) (rate(distill_student_feature_requests_total{@}[$__rate_interval]))", "{{result}}")),
        Panel("Requests sent again", "Requests that a teacher left unanswered.", "ops",
              Query("sum by (instance) (rate(distill_student_feature_resends_total{@}[$__rate_interval]))", "{{instance}}")),
        Panel("Second teachers asked", "Share of the requests that a second teacher was asked too, because the first was late or is tried out. Alert:"
              " DistillSecondTeachersAsked.", "percentunit",
              Query("sum by (instance) (rate(distill_student_feature_seconds_asked_total{@}[$__rate_interval]))"
                    " / (sum by (instance) (rate(distill_student_feature_requests_total{@}[$__rate_interval])) > 0)", "{{instance}}"), max=1),
        Panel("Teachers set aside", "Times within the interval that a student set a teacher aside. `silent`: no answer in its time; `wrong`: errors, or NaN"
              " where another teacher has none. The job's events name it. Alert: DistillTeacherSetAside.", "short",
              Query("sum by (instance, reason) (increase(distill_student_teachers_set_aside_total{@}[$__rate_interval]))", "{{instance}} {{reason}}")),
        Panel("Waiting for features", "Share of its step time that each student waits for features. Alert: DistillStudentStalledOnFeatures.", "percentunit",
              Query('sum by (instance) (rate(distill_student_step_seconds_sum{@, part="wait_features"}[$__rate_interval]))'
                    " / (sum by (instance) (rate(distill_student_step_seconds_sum{@}[$__rate_interval])) > 0)", "{{instance}}"), max=1),
        Panel("Latency, all", "Distribution of the latencies of all students.", "s",
              Query("sum by (le) (increase(distill_student_feature_latency_seconds_bucket{@}[$__rate_interval]))", "{{le}}", "heatmap"), "heatmap"),
    ])


PARTS = "data: the loader; wait_features: teachers or wire; forward, loss: the student's forward pass; sync: all-reduce of the losses, where ranks" \
        " wait for one another; backward: with the gradients' all-reduce, which overlaps it; optimizer."


def step():
    seconds = "distill_student_step_seconds"
    mean = f"sum by (part) (rate({seconds}_sum{{@}}[$__rate_interval])) / (sum by (part) (rate({seconds}_count{{@}}[$__rate_interval])) > 0)"
    share = (f"sum by (part) (rate({seconds}_sum{{@}}[$__rate_interval]))"
             f" / on() group_left() (sum(rate({seconds}_sum{{@}}[$__rate_interval])) > 0)")

    def one(part):
        return Query(f'sum by (instance) (rate({seconds}_sum{{@, part="{part}"}}[$__rate_interval]))'
                     f' / (sum by (instance) (rate({seconds}_count{{@, part="{part}"}}[$__rate_interval])) > 0)', "{{instance}}")

    return dashboard("step", "Student step", "Where the time of a training step goes.", "distill_student_steps_total", [
        Panel("A step, by part", f"Mean time of each part of a step over the ranks. {PARTS}", "s", Query(mean, "{{part}}"), width=12, height=10, stack=True),
        Panel("Share by part", "The same as shares. `wait_features` above one half for long: alert DistillStudentStalledOnFeatures.", "percentunit",
              Query(share, "{{part}}"), width=12, height=10, stack=True, max=1),
        Panel("Data", "Waiting for the loader, per rank. High: more cores, or smaller images.", "s", one("data"), width=6),
        Panel("Waiting for features", "Waiting for teachers' features, per rank. High: see the dashboards Teacher and Wire.", "s", one("wait_features"), width=6),
        Panel("Forward", "The student's forward pass, per rank.", "s", one("forward"), width=6),
        Panel("Loss", "Adapters and losses, per rank.", "s", one("loss"), width=6),
        Panel("Backward", "Backward pass with the gradients' all-reduce inside, per rank.", "s", one("backward"), width=6),
        Panel("Sync (all-reduce)", "All-reduce of the losses, per rank. High on the fast ranks: another rank is slower.", "s", one("sync"), width=6),
        Panel("Optimizer", "The optimizer's step, per rank.", "s", one("optimizer"), width=6),
        Panel("Steps per second", "Optimizer steps of each rank.", "ops",
              Query("sum by (instance) (rate(distill_student_steps_total{@}[$__rate_interval]))", "{{instance}}"), width=6),
        Panel("Slow steps", "95th percentile of each part over the ranks: what is spiky rather than slow.", "s",
              Query(f"histogram_quantile(0.95, sum by (part, le) (rate({seconds}_bucket{{@}}[$__rate_interval])))", "{{part}}"), width=12),
        Panel("Waiting for features, all", "Distribution of the waits. Two bands: most steps find their features there, some wait for a whole batch.", "s",
              Query(f'sum by (le) (increase({seconds}_bucket{{@, part="wait_features"}}[$__rate_interval]))', "{{le}}", "heatmap"), "heatmap", width=12),
    ])


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = []
    for name, build in {"fleet": fleet, "job": job, "teacher": teacher, "wire": wire, "step": step}.items():
        path, text = FOLDER / f"{name}.json", json.dumps(build(), indent=1) + "\n"
        if check and (not path.exists() or path.read_text() != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text)
    if stale:
        sys.exit(f"deploy/grafana/dashboards: {', '.join(stale)} differ from dashboards.py; run deploy/grafana/dashboards.py")


if __name__ == "__main__":
    main()
