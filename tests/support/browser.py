"""A real Chromium without a window, driven by the Chrome DevTools Protocol.

with Browser.running(folder) as browser:
    page = browser.open("http://127.0.0.1:9470/")
    assert page.evaluate("document.title") == "…"
    assert page.complaints == []
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from tests.support.polling import poll_until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60.0


def chromium() -> str:
    """Return the program. `.ci/run` installs it."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    assert found is not None, "Chromium is needed: apt-get install chromium"
    return found


class Browser:
    """One page. `complaints` are errors of scripts, of the network and of the page's security policy."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.complaints: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Self]:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        arguments += ["--disable-dev-shm-usage", "--disable-background-networking", "--no-proxy-server"]
        arguments += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        with (folder.parent / "chromium.log").open("w") as log:
            process = subprocess.Popen([chromium(), *arguments], stdout=log, stderr=log)
        try:
            port_file = folder / "DevToolsActivePort"
            port = poll_until(lambda: _first_line(port_file), TIMEOUT, what="Chromium's port")
            pages = poll_until(lambda: _pages(port), TIMEOUT, what="a page")
            with connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield cls(socket)
        finally:
            process.kill()
            process.wait(TIMEOUT)

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints.clear()
        self._loaded = False
        self._call("Page.navigate", url=url)
        while not self._loaded:
            self._take(json.loads(self._socket.recv(TIMEOUT)))

    def evaluate(self, script: str) -> Any:
        """Return the JSON value of an expression, which may be a promise."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        poll_until(lambda: self.evaluate(script), TIMEOUT, what=script)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return b64decode(answer["data"])

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(TIMEOUT))
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]
            self._take(said)

    def _take(self, said: dict[str, Any]) -> None:
        parameters = said.get("params", {})
        match said.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                self.complaints.append(json.dumps(parameters["args"]))
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"a dialog: {parameters['message']}")


KEYS = {"Tab": 9, "Enter": 13}


def _first_line(file: Path) -> str | None:
    lines = file.read_text().splitlines() if file.exists() else []
    return lines[0] if len(lines) > 1 else None


def _pages(port: str) -> list[dict[str, Any]]:
    with urlopen(f"http://127.0.0.1:{port}/json", timeout=TIMEOUT) as answer:
        return [page for page in json.load(answer) if page["type"] == "page"]
