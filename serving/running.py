"""A server as a process of its own, from its start until nobody needs it any more."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib import error, request

from slipstream.evaluation.errors import SlipstreamError

_POLL_S, _TAIL = 0.1, 2000
_DIRECTLY = request.build_opener(request.ProxyHandler({}))  # whatever http_proxy says
_PASSED = ("HOME", "LANG", "CUDA_VISIBLE_DEVICES", "HF_HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")
_END_S = 30.0  # that a server has to end by itself


class RunningServer:
    """A server behind /v1/models, which is how it says that it is ready.

    Args:
        command: what starts it; it listens on `port` of this machine.
        log: the file that its output goes to.
        environ: its environment; None: this process's.
        start_s: how long it may take to be ready.

    Raises:
        SlipstreamError: from `with`, when it ends or isn't ready in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        log: Path,
        *,
        environ: Mapping[str, str] | None = None,
        start_s: float = 900.0,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log, self._start_s = log, start_s
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environ
            )

    def __enter__(self) -> Self:
        until = time.monotonic() + self._start_s
        while time.monotonic() < until:
            if (code := self.process.poll()) is not None:
                raise SlipstreamError(f"the server ended with {code}:\n{self._last_words()}")
            try:
                with _DIRECTLY.open(f"{self.url}/models", timeout=_END_S):
                    return self
            except (error.URLError, OSError, HTTPException):
                time.sleep(_POLL_S)
            except BaseException:
                self._end()
                raise
        self._end()
        raise SlipstreamError(
            f"the server wasn't ready after {self._start_s:.0f} s:\n{self._last_words()}"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-_TAIL:].strip()


def passed() -> dict[str, str]:
    """Return what a server that others wrote may see of this environment; never a key."""
    return {name: os.environ[name] for name in _PASSED if name in os.environ}


def free_port() -> int:
    """Return a port of this machine that nobody listens on right now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
