"""A headless Chromium that does what a person does: opens pages, presses keys, clicks, looks; W3C WebDriver by hand."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
KEY = "element-6066-11e4-a52e-4f735466cecf"  # under which WebDriver hands out elements
KEYS = {"down": "\ue015", "up": "\ue013", "tab": "\ue004", "enter": "\ue007", "space": " "}
NEEDS = ("chromium", "chromedriver")


def missing() -> str:
    """Why no browser can be driven here; empty where one can."""
    gone = [name for name in NEEDS if shutil.which(name) is None]
    return f"{' and '.join(gone)} not installed: pages were checked by parsing alone" if gone else ""


class Browser:
    """One window. Elements are CSS selectors."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._session = ""

    def begin(self, profile: Path) -> None:
        """Open the window, with a profile of its own."""
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._session = f"/session/{self._ask('POST', '/session', {'capabilities': capabilities})['sessionId']}"

    def end(self) -> None:
        """Close it."""
        self._ask("DELETE", self._session)

    def open(self, page: Path) -> None:
        """Show a page."""
        self._ask("POST", f"{self._session}/url", {"url": page.as_uri()})

    def run(self, script: str, *given: object) -> Any:
        """What a script returns."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(given)})

    def press(self, *keys: str) -> None:
        """Keys, at the element that has the focus."""
        (element,) = self._ask("GET", f"{self._session}/element/active").values()
        text = "".join(KEYS[key] for key in keys)
        self._ask("POST", f"{self._session}/element/{element}/value", {"text": text})

    def click(self, selector: str) -> None:
        """Click the first element."""
        found = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"{self._session}/element/{found[KEY]}/click", {})

    def shown(self, selector: str) -> list[str]:
        """The texts of the elements that can be seen."""
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
        return list(self.run(f"{script}.map(e => e.textContent)", selector))

    def screen(self, width: int, height: int) -> None:
        """Take the size of a device's screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", size)

    def medium(self, name: str = "", scheme: str = "light") -> None:
        """`print` or the screen, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._devtools("Emulation.setEmulatedMedia", {"media": name, "features": features})

    def picture(self, path: Path) -> Path:
        """What the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))
        return path

    def _devtools(self, command: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._server + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A window that is closed at the end of the block.

    Args:
        folder: for its profile.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        made = Browser(f"http://127.0.0.1:{port}")
        made.begin(folder / "profile")
        yield made
        made.end()
    finally:
        server.terminate()
        server.wait()


def _wait(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")
