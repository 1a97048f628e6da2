"""Chromium by its debugging pipe: what a page asks for, what its console says, what a script finds in it."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.dashboards.samples import CHROMIUM

SECONDS = 90.0


class Browser:
    """One tab: commands of the DevTools protocol go out, their answers and the tab's events come back."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into, self._rest, self._numbers = out, into, b"", itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self._tab: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command and give its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._tab is not None:
            message["sessionId"] = self._tab
        os.write(self._out, json.dumps(message).encode() + b"\0")
        for one in self._messages():
            if one.get("id") == number:
                assert "error" not in one, one
                return one["result"]
            self.events.append(one)
        raise TimeoutError(method)

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            while b"\0" in self._rest:
                one, self._rest = self._rest.split(b"\0", 1)
                yield json.loads(one)
            if select.select([self._into], [], [], 1.0)[0]:
                self._rest += os.read(self._into, 1 << 16)

    def run(self, script: str) -> Any:
        """The value of a script, which may be a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path) -> None:
        """Open a file and wait until its script is ready."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + SECONDS
        while not self.run("document.body ? document.body.dataset.ready || '' : ''"):
            assert time.monotonic() < end, "the page's script was not ready in time"
            time.sleep(0.05)

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, but for its own file and data in the page."""
        sent = [one["params"]["request"]["url"] for one in self._of("Network.requestWillBeSent")]
        return [url for url in sent if not url.startswith(("file:", "data:"))]

    @property
    def errors(self) -> list[str]:
        """What the console complains of."""
        thrown = [str(one["params"]) for one in self._of("Runtime.exceptionThrown")]
        logged = [str(one["params"]["entry"]) for one in self._of("Log.entryAdded")]
        return thrown + logged + [str(one["params"]) for one in self._of("Runtime.consoleAPICalled")]

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one.get("method") == method]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A headless browser, which ends with the body."""
    pairs = [os.pipe(), os.pipe()]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (pairs[0][0], pairs[1][1])]  # 3 and 4 may be taken

    def placed() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"),
        *("--disable-background-networking", f"--user-data-dir={profile}"),
    ]
    process = subprocess.Popen(
        command, preexec_fn=placed, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Browser(pairs[0][1], pairs[1][0])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        for fd in (*pairs[0], *pairs[1], *high):
            os.close(fd)
