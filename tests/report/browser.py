"""Headless Chromium for tests and screenshots of the page, driven over a pipe without further packages.

`python -m tests.report.browser report/report.html docs/report.png 1280 2000 light` writes a screenshot.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
DECODED = """Promise.all([...document.images].filter((image) => image.checkVisibility()).map((image) => {
  image.loading = "eager";
  return image.decode();
})).then(() => true)"""  # waits for all images but those in folded parts
PATIENCE = 120.0  # seconds for an answer
READ, WRITE = 3, 4  # file descriptors on which the browser reads commands and writes answers


class Browser:
    """One tab of a headless Chromium; `events` holds all that it reported.

    Commands and events are those of the Chrome DevTools Protocol: JSON, each ended by a zero byte.
    """

    def __init__(self) -> None:
        if PROGRAM is None:
            raise RuntimeError(f"no browser: none of {', '.join(NAMES)} is installed")
        self.events: list[dict[str, Any]] = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()

        def place() -> None:
            copies = os.dup(commands), os.dup(answers)
            os.dup2(copies[0], READ)
            os.dup2(copies[1], WRITE)

        self._process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=place, close_fds=False,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._session = b"", 0, ""
        (tab, *_) = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._write)  # the browser ends
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        os.close(self._read)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self.events.append(message)

    def open(self, page: Path, width: int, height: int, scheme: str) -> None:
        """Load a page in a window of this size, with the color scheme "light" or "dark"."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Return the value of a script; it may be a promise."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def screenshot(self) -> bytes:
        """Return the visible part of the page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def errors(self) -> list[str]:
        """List what the page wrote to the console, with uncaught errors."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in methods]

    def requests(self) -> list[str]:
        """List the addresses that the page asked for; embedded data is no request."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if not each["request"]["url"].startswith("data:")]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser did not answer within {PATIENCE:g} s")
            received = os.read(self._read, 1 << 20)
            if not received:
                raise RuntimeError(f"the browser ended with status {self._process.wait()}")
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))


def main(page: str, picture: str, width: str, height: str, scheme: str) -> None:
    """Write a screenshot of the top of a page."""
    with Browser() as browser:
        browser.open(Path(page), int(width), int(height), scheme)
        browser.run(DECODED)
        Path(picture).write_bytes(browser.screenshot())


if __name__ == "__main__":
    main(*sys.argv[1:])
