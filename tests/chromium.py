"""A headless Chromium for tests of pages: true viewport widths, overflow, console messages, pictures.

It speaks the DevTools protocol over a pair of pipes, so nothing but Chromium itself is needed. A
window of headless Chromium is never narrower than about 500 pixels; the emulated viewport is.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Browser", "Visit", "find_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")

# Chromium reads commands from file descriptor 3 and writes answers to 4: this puts the pipes there.
_ON_PIPES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

# What sticks out of the viewport without a scroll container of its own around it.
_MEASURE = """(() => {
  const root = document.documentElement;
  const inside = element => {
    for (let e = element.parentElement; e && e !== document.body; e = e.parentElement) {
      if (getComputedStyle(e).overflowX !== 'visible') return true;
    }
    return false;
  };
  const out = [...document.body.querySelectorAll('*')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && box.right > root.clientWidth + 1 && !inside(element);
  });
  const images = [...document.images];
  return {
    inner_width: innerWidth,
    client_width: root.clientWidth,
    scroll_width: Math.max(root.scrollWidth, document.body.scrollWidth),
    height: root.scrollHeight,
    overflowing: out.slice(0, 10).map(e => e.tagName.toLowerCase() + (e.className ? '.' + e.className : '')),
    broken_images: images.filter(i => !i.complete || i.naturalWidth === 0).length,
    text: document.body.innerText,
  };
})()"""


@dataclass(frozen=True)
class Visit:
    """What one visit found: `overflowing` names elements beyond the right edge, `requests` leaves the page out."""

    inner_width: int
    client_width: int
    scroll_width: int
    height: int
    overflowing: list[str]
    broken_images: int
    text: str
    messages: list[str]
    requests: list[str]
    screenshot: bytes


def find_chromium() -> str | None:
    """The path of a Chromium: what CHROMIUM names, else the first of the usual names on the PATH."""
    for name in (os.environ.get("CHROMIUM"), *_NAMES):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


class Browser:
    """A running Chromium; a context manager that ends it and removes its profile."""

    def __init__(self, path: str, *, timeout: float = 60.0):
        self._timeout = timeout
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._numbers = itertools.count(1)
        self._waiting = b""
        self._events: list[dict] = []
        ends = [os.pipe(), os.pipe()]
        # Out of the way of 3 and 4, or one dup2 would overwrite what the next one needs.
        (theirs_in, self._write), (self._read, theirs_out) = [
            tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pair) for pair in ends
        ]
        for end in itertools.chain(*ends):
            os.close(end)
        options = [
            "--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={self._profile}",
        ]  # fmt: skip
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium refuses to start as root otherwise
        command = [sys.executable, "-c", _ON_PIPES, str(theirs_in), str(theirs_out), path, *options]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session, which holds nothing but its own helpers
        self._process.wait(10)
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def visit(
        self,
        page: Path,
        *,
        width: int,
        height: int = 900,
        dark: bool = False,
        media: str = "screen",
        script: str = "",
        actions: Sequence[tuple[str, str]] = (),
    ) -> Visit:
        """Opens a file in a viewport of that width, runs `script` in it, acts, measures and takes a picture.

        An action is ("click", selector), ("key", name) or ("run", script); mouse and keys are the browser's own events.
        """
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._events.clear()

        def call(method: str, **params: object) -> dict:
            return self._call(method, session, **params)

        for domain in ("Page", "Runtime", "Log", "Network"):
            call(f"{domain}.enable")
        call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        url = page.resolve().as_uri()
        call("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")
        # Decoding of images may outlast the load event.
        wait = "Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => 0)"
        call("Runtime.evaluate", expression=wait, awaitPromise=True)
        if script:
            call("Runtime.evaluate", expression=script)
        if actions:
            call("Page.bringToFront")
            call("Emulation.setFocusEmulationEnabled", enabled=True)
        for kind, what in actions:
            _act(call, kind, what)
        found = call("Runtime.evaluate", expression=_MEASURE, returnByValue=True)["result"]["value"]
        clip = {"x": 0, "y": 0, "width": width, "height": found["height"], "scale": 1}
        picture = call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        events = list(self._events)
        self._call("Target.closeTarget", targetId=target)
        return Visit(
            **found, messages=_messages(events), requests=_requests(events, url), screenshot=base64.b64decode(picture)
        )

    def _call(self, method: str, session: str | None = None, **params: object) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._write, left) :]
        while True:
            answer = self._next()
            if answer.get("id") != number:
                self._events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def _wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict:
        """One message; they end with a zero byte."""
        deadline = time.monotonic() + self._timeout
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError(f"Chromium was silent for {self._timeout:.0f} s")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._waiting += chunk
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)


_KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def _act(call: Callable[..., dict], kind: str, what: str) -> None:
    if kind == "run":
        call("Runtime.evaluate", expression=what)
    elif kind == "key":
        text = {"Enter": "\r", " ": " "}.get(what)
        key = {"key": what, "code": "Space" if what == " " else what, "windowsVirtualKeyCode": _KEYS[what]}
        call("Input.dispatchKeyEvent", type="keyDown", **key, **({} if text is None else {"text": text}))
        call("Input.dispatchKeyEvent", type="keyUp", **key)
    else:
        find = f"""(() => {{
          const element = document.querySelector({json.dumps(what)});
          element.scrollIntoView({{block: 'center'}});
          const box = element.getBoundingClientRect();
          return [box.left + box.width / 2, box.top + box.height / 2];
        }})()"""
        x, y = call("Runtime.evaluate", expression=find, returnByValue=True)["result"]["value"]
        for step in ("mousePressed", "mouseReleased"):
            call("Input.dispatchMouseEvent", type=step, x=x, y=y, button="left", clickCount=1)


def _messages(events: list[dict]) -> list[str]:
    """Everything that the console would show, whatever its level, and uncaught exceptions."""
    found = []
    for event in events:
        params = event.get("params", {})
        if event.get("method") == "Log.entryAdded":
            found.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            found.append(" ".join(str(value.get("value")) for value in params["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            found.append(params["exceptionDetails"]["text"])
    return found


def _requests(events: list[dict], page: str) -> list[str]:
    urls = [event["params"]["request"]["url"] for event in events if event.get("method") == "Network.requestWillBeSent"]
    return [url for url in urls if url != page and not url.startswith("data:")]
