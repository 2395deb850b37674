#!/usr/bin/env python3
"""The status page in a real browser, on a real cluster with a token: coordinator, teacher, two students, a small job.

    page_test.py --bin FOLDER --source FOLDER [--screenshots FOLDER] [unittest option...]

Exit code 77: skipped; the reason is on standard error.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True  # the source folder stays as it is
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser  # noqa: E402

DATA_ROOT = "/usr/share/datasets"
NASTY = "<script>hacked=1</script><img src=x onerror='hacked=1'>"

JOB = """
name: tiny
seed: 3
students: 2
batch_size: 64
student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}
teacher: fashion
data: {path: fashion-mnist, train_size: 60000, train_limit: 4096, test_limit: 512}
optimizer: {lr: 0.05}
log_every: 2
checkpoint: {every: 10}
evaluate: {every: 40}
stages:
  - name: mimic
    trainable: [conv1, bn1, layer1]
    steps: 20
    losses:
      - {type: l2, student: layer1, teacher: layer1}
  - name: whole
    steps: 120
    losses:
      - {type: cross_entropy, weight: 0.1}
      - {type: kd, weight: 0.9, temperature: 4}
      - {type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3}
"""


def skip(reason):
    print(f"skipped: {reason}", file=sys.stderr)
    sys.exit(77)


def find_chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    return None


class Cluster:
    """Real programs on loopback, in a folder of their own."""

    def __init__(self, options):
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="distill-page-")
        self.processes = {}
        self.token = "page-test-" + os.urandom(8).hex()
        self.path("token", self.token + "\n")
        self.coordinator = self.http = "127.0.0.1:0"

    def path(self, name, content=None):
        path = os.path.join(self.folder, name)
        if content is not None:
            with open(path, "w", encoding="utf-8") as out:
                out.write(content)
        return path

    def start(self, name, program, *flags):
        ready = self.path(name + ".ready")
        if os.path.exists(ready):
            os.remove(ready)
        with open(self.path(name + ".log"), "ab") as log:
            process = subprocess.Popen(
                [
                    os.path.join(self.options.bin, program),
                    "--ready-file",
                    ready,
                    "--token-file",
                    self.path("token"),
                    *flags,
                ],
                stdout=log,
                stderr=log,
            )
        self.processes[name] = process
        end = time.monotonic() + 120
        while not os.path.exists(ready):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{program} is not ready:\n{self.log(name)}")
            time.sleep(0.05)
        with open(ready, encoding="utf-8") as lines:
            return dict(line.strip().split("=", 1) for line in lines)

    # The second start takes the first one's state and ports.
    def start_coordinator(self):
        ready = self.start(
            "coordinator",
            "distill-coordinator",
            "--listen",
            self.coordinator,
            "--http-listen",
            self.http,
            "--state-dir",
            self.path("state"),
            "--files-dir",
            self.path("work"),
            "--lease",
            "3",
            "--heartbeat",
            "0.25",
        )
        self.coordinator, self.http = ready["address"], ready["http"]

    def start_student(self, number):
        self.start(
            f"student-{number}",
            "distill-student",
            "--coordinator",
            self.coordinator,
            "--data-root",
            DATA_ROOT,
            "--work-dir",
            self.path("work"),
            "--id",
            f"student-{number}",
            "--collective-timeout",
            "10",
        )

    def start_all(self):
        os.makedirs(self.path("work"))
        self.start_coordinator()
        teacher = os.path.join(self.options.source, "examples/teachers/fashion-resnet20.safetensors")
        self.start(
            "teacher-0",
            "distill-teacher",
            "--coordinator",
            self.coordinator,
            "--id",
            "teacher-0",
            "--threads",
            "1",
            "--model",
            f"fashion={teacher}",
        )
        for number in range(2):
            self.start_student(number)

    def kill(self, name):
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *args):
        result = subprocess.run(
            [
                os.path.join(self.options.bin, "distillctl"),
                "--coordinator",
                self.coordinator,
                "--token-file",
                self.path("token"),
                *args,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if result.returncode != 0:
            raise AssertionError(f"distillctl {args}: exit code {result.returncode}: {result.stderr}")
        return result.stdout

    def ctl_json(self, *args):
        return json.loads(self.ctl(*args, "--output", "json"))

    def log(self, name):
        with open(self.path(name + ".log"), encoding="utf-8", errors="replace") as text:
            return text.read()[-4000:]

    def await_job(self, job, done, what):
        end = time.monotonic() + 300
        while True:
            state = self.ctl_json("describe", job)
            if done(state):
                return state
            if time.monotonic() > end or state["state"] == "JOB_STATE_FAILED":
                raise AssertionError(
                    f"never {what}: {json.dumps(state)[:3000]}\n{self.log('student-0')}\n{self.log('student-1')}"
                )
            time.sleep(0.2)


# Text of the fact with this title, as JavaScript.
FACT = (
    "(title) => [...document.querySelectorAll('#job-facts div')]"
    ".find((d) => d.firstChild.textContent === title)?.lastChild.textContent"
)


class PageTest(unittest.TestCase):
    """One story, told in order: log in, watch a job lose a rank, compare, look, restart the coordinator, log out."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(OPTIONS)
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.start_all()
        cls.browser = Browser(OPTIONS.chromium)
        cls.addClassCleanup(cls.browser.__exit__)
        cls.url = f"http://{cls.cluster.http}"

    def setUp(self):
        self.browser.messages.clear()

    def quiet(self):
        self.assertEqual(self.browser.messages, [], "the console has something to say")

    def fact(self, title):
        return self.browser.evaluate(f"({FACT})({json.dumps(title)})")

    def rows(self, selector):
        """Texts of a table's cells."""
        return self.browser.evaluate(
            f"[...document.querySelectorAll('{selector} tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
        )

    def shot(self, name):
        if OPTIONS.screenshots:
            os.makedirs(OPTIONS.screenshots, exist_ok=True)
            self.browser.screenshot(os.path.join(OPTIONS.screenshots, name + ".png"))

    def log_in(self, token):
        self.browser.wait("document.querySelector('#token') !== null")
        self.browser.evaluate("document.querySelector('#token').focus()")
        self.browser.type(token)
        self.browser.evaluate("void (window.left = false)")
        self.browser.key("Enter")
        self.browser.wait("document.readyState === 'complete' && window.left === undefined")

    def test_1_login(self):
        self.browser.open(self.url + "/")
        self.assertEqual(self.browser.evaluate("location.pathname"), "/login")
        self.browser.look(390, 844, dark=True, phone=True)
        self.shot("login-phone-dark")
        self.quiet()
        self.log_in("guess")
        self.assertIn(
            "not the coordinator's token", self.browser.evaluate("document.querySelector('[role=alert]').textContent")
        )
        self.assertTrue(
            all("401" in m for m in self.browser.messages), self.browser.messages
        )  # the refused page itself
        self.browser.messages.clear()
        self.browser.look(1280, 900, dark=False)
        self.log_in(self.cluster.token)
        self.browser.wait("document.querySelector('#connection')?.textContent === 'live'")
        cookies = self.browser.call("Network.getCookies")["cookies"]
        self.assertEqual(
            [(c["name"], c["httpOnly"], c["sameSite"]) for c in cookies], [("distill_session", True, "Strict")]
        )
        self.assertNotIn(self.cluster.token, cookies[0]["value"])
        self.assertEqual(self.browser.evaluate("document.cookie"), "")
        self.assertFalse(self.browser.evaluate("document.querySelector('#logout').hidden"))
        self.assertIn("No jobs yet", self.browser.evaluate("document.querySelector('#jobs').textContent"))
        self.quiet()

    def test_2_a_running_job_with_a_lost_rank(self):
        job = self.cluster.ctl("submit", self.cluster.path("job.yaml", JOB), "--quiet").strip()
        type(self).job = job
        self.browser.wait("document.querySelector('#job-title').textContent !== ''")
        self.browser.wait(f"({FACT})('Doing') === 'training'", 180)
        first = self.fact("Steps")
        self.browser.wait(f"({FACT})('Steps') !== {json.dumps(first)}", 120)
        self.cluster.await_job(
            job, lambda j: j["progress"] and int(j["progress"]["total_step"]) > 35, "past its first checkpoints"
        )
        self.cluster.kill("student-1")
        self.cluster.start_student(1)
        self.cluster.await_job(job, lambda j: j["state"] == "JOB_STATE_SUCCEEDED", "done")
        self.browser.wait("document.querySelector('#job-state').textContent === 'succeeded'")
        self.quiet()

    def test_3_values_are_those_of_distillctl(self):
        job = self.cluster.ctl_json("describe", self.job)
        stages = job["plan"]["stages"]

        def shown(score):
            names = {"top1": "top-1", "top5": "top-5"}
            return ", ".join(f"{names[m['name']]} {m['value'] * 100:.2f}%" for m in score["metrics"])

        self.assertEqual(self.fact("Student on the test set"), shown(job["artifacts"]["student_score"]))
        self.assertEqual(self.fact("Teacher on the test set"), shown(job["artifacts"]["teacher_score"]))
        self.assertEqual(self.fact("Loss"), f"{job['progress']['loss']:.4g}")
        self.assertEqual(self.fact("Steps"), "140 of 140 (100%)")
        self.assertEqual(self.fact("Generation"), "2, 1 restart")
        self.assertEqual(self.fact("Members by rank"), ", ".join(job["ranks"]))
        # The table of jobs against `list`: id, state, stage, done, score, time submitted, time taken.
        listed = re.split(r"\s{2,}", self.cluster.ctl("list").splitlines()[1].strip())
        row = self.rows("#jobs")[0]
        self.assertEqual(
            [row[0], row[1], row[2], row[3].strip(), row[4], row[5], row[6]],
            [listed[0], listed[2], listed[3], listed[4], listed[5], listed[6], listed[7]],
        )
        done = self.rows("#stages")
        self.assertEqual([r[1] for r in done], [s["name"] for s in stages])
        self.assertEqual([r[2] for r in done], [f"{s['loss']:.4g}" for s in job["stages_done"]])
        self.assertEqual([r[6].removesuffix("copy") for r in done], [s["checkpoint"] for s in job["stages_done"]])
        files = self.rows("#files")
        self.assertEqual([r[3] for r in files[:2]], [s["digest"] for s in job["stages_done"]])
        self.assertEqual(
            [r[1].removesuffix("copy") for r in files[2:4]],
            [job["artifacts"]["safetensors"], job["artifacts"]["torchscript"]],
        )
        events = self.cluster.ctl_json("logs", self.job)["events"]
        self.browser.wait(f"document.querySelectorAll('#events tbody tr').length >= {len(events)}")
        self.assertEqual([r[3] for r in self.rows("#events")], [e["text"] for e in reversed(events)])
        fleet = self.cluster.ctl_json("fleet")["workers"]
        for kind in ("teacher", "student"):
            self.assertEqual(
                [r[:1] + r[2:4] for r in self.rows(f"#{kind}s")],
                [[w["id"], w["device"], w["address"]] for w in fleet if w["kind"] == kind],
            )
        self.assertEqual(len(self.rows("#plan")), sum(len(s["losses"]) for s in stages))
        timeline = self.browser.evaluate("document.querySelector('#timeline').textContent")
        self.assertIn("1 mimic, 20 steps", timeline)
        self.assertIn("generation 2", timeline)
        self.quiet()

    def test_3b_files_are_downloaded_by_their_links(self):
        job = self.cluster.ctl_json("describe", self.job)
        links = self.browser.evaluate(
            "[...document.querySelectorAll('#files a[download]')].map((a) => [a.pathname, a.textContent])"
        )
        work = self.cluster.path("work")
        # Every file of the job's folder has its link, the student's with the path that the student tells.
        there = sorted(
            os.path.relpath(os.path.join(folder, name), work)
            for folder, _, names in os.walk(os.path.join(work, self.job))
            for name in names
        )
        self.assertEqual(sorted(address for address, _ in links), ["/files/" + path for path in there])
        names = dict(links)
        self.assertEqual(names[f"/files/{self.job}/student.pt"], job["artifacts"]["torchscript"])
        stage = os.path.basename(job["stages_done"][0]["checkpoint"])
        self.assertEqual(names[f"/files/{self.job}/checkpoints/{stage}/model.safetensors"], "model.safetensors")
        downloads = self.cluster.path("downloads")
        os.makedirs(downloads)
        self.browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=downloads)
        for path in ("student.pt", f"checkpoints/{stage}/model.safetensors"):
            address = f"/files/{self.job}/{path}"
            self.browser.evaluate(f"document.querySelector('#files a[href=\"{address}\"]').click()")
            saved = os.path.join(downloads, f"{self.job}-{path.replace('/', '-')}")
            end = time.monotonic() + 60
            while not os.path.exists(saved):
                self.assertLess(time.monotonic(), end, f"{address} was not downloaded: {os.listdir(downloads)}")
                self.browser.evaluate("new Promise((done) => setTimeout(done, 50))")
            with open(saved, "rb") as got, open(os.path.join(work, self.job, path), "rb") as wanted:
                self.assertEqual(got.read(), wanted.read(), address)
        self.assertEqual(self.browser.evaluate("location.pathname"), "/")
        self.quiet()

    def test_4_curves_tell_their_values(self):
        points = self.cluster.ctl_json("history", self.job)["points"]
        newest = {int(p["total_step"]): p for p in points if p["terms"] and int(p["step"]) > 0}
        steps = sorted(newest)
        self.browser.evaluate("document.querySelector('#loss-chart svg').focus()")

        def tip(key):
            self.browser.key(key)
            return self.browser.evaluate(
                "[...document.querySelectorAll('#loss-chart .tip p')].map((p) => p.textContent)"
            )

        for key, step in (("Home", steps[0]), ("ArrowRight", steps[1])):
            lines = tip(key)
            self.assertEqual(lines[0], f"step {step}")
            self.assertEqual(lines[1], f"loss (weighted sum) {newest[step]['loss']:.4g}")
        last = tip("Home") and tip("ArrowLeft")  # stays at the first
        self.assertEqual(last[0], f"step {steps[0]}")
        shown = set(
            self.browser.evaluate("[...document.querySelectorAll('#parts li')].map((l) => l.textContent.split(' ')[0])")
        )
        self.assertEqual(shown, {s["name"] for s in newest[steps[-1]]["step_seconds"]})
        self.assertIn(
            "newest values: student", self.browser.evaluate("document.querySelector('#score-chart svg').ariaLabel")
        )
        # Logarithmic, and back; the curves' switches.
        button = "document.querySelector('#loss-chart .scale')"
        labels = "[...document.querySelectorAll('#loss-chart svg text')].map((t) => t.textContent).join(' ')"
        linear = self.browser.evaluate(labels)
        self.browser.evaluate(f"{button}.click()")
        self.assertEqual(self.browser.evaluate(f"{button}.getAttribute('aria-pressed')"), "true")
        self.assertNotEqual(self.browser.evaluate(labels), linear)
        self.browser.evaluate(f"{button}.click()")
        self.assertEqual(self.browser.evaluate(labels), linear)
        curves = "document.querySelectorAll('#loss-chart path').length"
        before = self.browser.evaluate(curves)
        self.browser.evaluate("document.querySelector('#loss-chart .tools button').click()")
        self.assertEqual(self.browser.evaluate(curves), before - 1)
        self.browser.evaluate("document.querySelector('#loss-chart .tools button').click()")
        self.quiet()

    def test_5_looks_right_on_desktop_and_phone(self):
        for name, width, height, phone in (("desktop", 1280, 900, False), ("phone", 360, 780, True)):
            for dark in (False, True):
                self.browser.look(width, height, dark, phone)
                what = f"{name}-{'dark' if dark else 'light'}"
                sizes = self.browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                self.assertEqual(sizes, [width, width], f"{what} scrolls sideways")
                ground = [
                    int(n)
                    for n in re.findall(
                        r"\d+", self.browser.evaluate("getComputedStyle(document.body).backgroundColor")
                    )
                ]
                self.assertEqual(sum(ground[:3]) < 384, dark, f"{what}: ground {ground}")
                wide = self.browser.evaluate(
                    "[...document.querySelectorAll('#job svg')]"
                    ".every((s) => s.getBoundingClientRect().right <= innerWidth)"
                )
                self.assertTrue(wide, f"{what}: a drawing is wider than the page")
                self.shot(what)
        self.browser.look(1280, 900, dark=False)
        self.quiet()

    def test_6_texts_of_users_stay_text(self):
        self.cluster.kill("student-0")  # so that the job waits
        job = self.cluster.ctl("submit", self.cluster.path("job.yaml"), "--name", "nasty", "--quiet").strip()
        self.cluster.ctl("cancel", job, "--reason", NASTY, "--wait")
        self.browser.evaluate(f"void (location.hash = 'job={job}')")
        self.browser.wait("document.querySelector('#job-state').textContent === 'cancelled'")
        self.assertIn(NASTY, self.browser.evaluate("document.querySelector('#job-reason').textContent"))
        self.browser.wait("document.querySelector('#events').textContent.includes('onerror')")
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('#job img, #job script').length"), 0)
        self.assertIsNone(self.browser.evaluate("window.hacked"))
        self.quiet()
        # And if something did slip in, the policy would stop it.
        blocked = self.browser.evaluate("""new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
            setTimeout(() => resolve("nothing blocked"), 10000);
        })""")
        self.assertEqual(blocked, "script-src-elem")
        self.assertIsNone(self.browser.evaluate("window.hacked"))

    def test_7_outlives_a_restart_of_the_coordinator(self):
        self.browser.open(f"{self.url}/#job={self.job}")
        self.browser.wait("document.querySelector('#connection').textContent === 'live'")
        self.cluster.kill("coordinator")
        self.browser.wait("document.querySelector('#connection').textContent === 'coordinator does not answer'")
        self.cluster.start_coordinator()
        self.browser.wait("document.querySelector('#connection').textContent === 'live'")
        self.assertIn("epoch 2", self.browser.evaluate("document.querySelector('#coordinator').textContent"))
        self.assertTrue(all("ERR_" in m for m in self.browser.messages), self.browser.messages)

    def test_8_logout(self):
        self.browser.evaluate("void (window.left = false)")
        self.browser.evaluate("document.querySelector('#logout button').click()")
        self.browser.wait("location.pathname === '/login' && window.left === undefined")
        self.assertEqual(self.browser.call("Network.getCookies")["cookies"], [])
        self.browser.open(self.url + "/")
        self.assertEqual(self.browser.evaluate("location.pathname"), "/login")
        self.quiet()

    def test_9_report(self):
        report = self.cluster.path("report.html")
        self.cluster.ctl("report", self.job, "-o", report)
        for name, width, phone in (("report", 1100, False), ("report-phone", 360, True)):
            self.browser.open("file://" + report)
            self.browser.look(width, 900, dark=False, phone=phone)
            self.assertEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width, name)
            self.shot(name)
        job = self.cluster.ctl_json("describe", self.job)
        text = self.browser.evaluate("document.body.textContent")
        for wanted in (
            f"{job['artifacts']['student_score']['metrics'][0]['value'] * 100:.2f}%",
            job["stages_done"][0]["digest"],
            job["plan"]["teachers"][0]["digest"],
            "generation 2",
            "student-0",
        ):
            self.assertIn(wanted, text)
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('svg').length"), 6)
        self.quiet()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--screenshots")
    OPTIONS, rest = parser.parse_known_args()
    OPTIONS.chromium = find_chromium()
    if OPTIONS.chromium is None:
        skip("no Chromium here; install the Debian package chromium")
    if not os.path.isdir(os.path.join(DATA_ROOT, "fashion-mnist")):
        skip("the Debian package dataset-fashion-mnist is not installed")
    unittest.main(argv=[sys.argv[0], "--verbose", "--failfast", *rest])
