"""Headless Chromium, driven through its DevTools protocol over a pair of pipes. Not a test file itself."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One page in a browser that may reach 127.0.0.1 alone; what went wrong or was asked for is noted.

    Args:
        folder: For its profile.
        width: Of the window.
        height: Of the window.
    """

    def __init__(self, folder: Path, width: int = 1200, height: int = 1000) -> None:
        assert CHROMIUM is not None
        commands, self._into = os.pipe()
        self._out_of, answers = os.pipe()
        high = [os.dup(fd) for fd in (commands, answers)]  # 3 and 4 are what Chromium uses

        def place() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-pipe", f"--user-data-dir={folder}", f"--window-size={width},{height}",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
            ],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (commands, answers, *high):
            os.close(fd)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self._is_loaded = False
        self.asked: list[str] = []
        """Addresses of all requests."""
        self.errors: list[str] = []
        """Of the console, and exceptions."""
        (page,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> Any:
        """The result of one command of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(30)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._out_of], [], [], seconds)
            assert ready, "Chromium does not answer"
            self._rest += os.read(self._out_of, 1 << 20)
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._is_loaded = True
        elif event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str([part.get("value", part.get("description")) for part in params["args"]]))

    def load(self, method: str, **params: Any) -> None:
        """A command that loads the page, and its end."""
        self._is_loaded = False
        self(method, **params)
        while not self._is_loaded:
            self._next(30)

    def value(self, script: str) -> Any:
        """What a piece of JavaScript gives."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, holds: Callable[[], Any], what: str, seconds: float = 30) -> None:
        """Wait for something to hold."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"it did not come to {what}: {self.value('document.body.innerText')[-600:]}"
            time.sleep(0.1)

    def press(self, key: str, code: int, times: int = 1, modifiers: int = 0) -> None:
        """A key, down and up."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        for kind in ("keyDown", "keyUp") * times:
            self("Input.dispatchKeyEvent", type=kind, **named)

    def give_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        self.until(lambda: self.value(f"!!document.querySelector('{selector}')"), selector)
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path) -> Path:
        """The whole page as PNG."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def close(self) -> None:
        """End the browser and all its processes."""
        os.write(self._into, json.dumps({"id": next(self._numbers), "method": "Browser.close"}).encode() + b"\0")
        self._process.wait(20)
        os.close(self._into)
        os.close(self._out_of)
