"""A headless Chromium, driven over the DevTools protocol through a pipe: no driver program and no package is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time


class BrowserError(Exception):
    pass


class Browser:
    """One Chromium with one page. Use as a context manager; it ends with the block."""

    def __init__(self, program, width=1280, height=900):
        self._profile = tempfile.mkdtemp(prefix="distill-chromium-")
        down_read, self._write = os.pipe()  # commands
        self._read, up_write = os.pipe()  # answers and events

        def arrange():
            # Chromium reads commands from descriptor 3 and writes to 4. Both ends are moved out of the way first.
            low, high = os.dup2(down_read, 100), os.dup2(up_write, 101)
            os.dup2(low, 3)
            os.dup2(high, 4)

        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
            "--no-first-run",
            "--disable-gpu",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            f"--window-size={width},{height}",
        ]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses its sandbox to root
        self._log = open(os.path.join(self._profile, "chromium.log"), "wb")
        self._process = subprocess.Popen(
            [program, *flags, "about:blank"],
            preexec_fn=arrange,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        os.close(down_read)
        os.close(up_write)
        self._buffer = b""
        self._next = 0
        self._session = None
        self.messages = []  # of the console, the log and exceptions, as text
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Asked first: a killed browser leaves children behind that still write to the profile.
        try:
            self._session = None
            self.call("Browser.close", timeout=10)
            self._process.wait(timeout=20)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._log.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method, timeout=60, **params):
        """Result of one command of the protocol."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self, end, what):
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise BrowserError(f"no answer to {what}")
            block = os.read(self._read, 1 << 16)
            if not block:
                raise BrowserError(f"chromium ended while it should do {what}")
            self._buffer += block
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.messages.append("exception: " + details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            entry = params["entry"]
            self.messages.append(f"{entry['source']} {entry['level']}: {entry['text']} {entry.get('url', '')}")
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
            self.messages.append(
                "console: " + " ".join(str(a.get("value", a.get("description"))) for a in params["args"])
            )
        return message

    def evaluate(self, expression):
        """The value of a JavaScript expression (a promise is awaited)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def wait(self, expression, timeout=60):
        """Until the expression is true; it may fail meanwhile, as while a page is being replaced."""
        end = time.monotonic() + timeout
        seen = None
        while True:
            try:
                seen = self.evaluate(expression)
                if seen:
                    return seen
            except BrowserError as error:
                seen = error
            if time.monotonic() > end:
                raise BrowserError(f"never true: {expression} (last: {seen}); console: {self.messages}")
            time.sleep(0.05)

    def open(self, url):
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        # The old document may still answer for a moment.
        self.wait(f"document.readyState === 'complete' && location.href !== 'about:blank'")

    def key(self, name):
        code = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "Enter": 13}[name]
        text = {"text": "\r"} if name == "Enter" else {}  # by which a form is sent
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def look(self, width, height, dark, phone=False):
        """Size of the viewport and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        # Two frames later observers of sizes have run.
        self.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r, 50))))")

    def screenshot(self, path, whole=True):
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as out:
            out.write(base64.b64decode(picture["data"]))
