"""An engine in a child process: the parent owns the clock, the prompts and the numbers.

Between two requests all processes in the sandbox are stopped: what an engine doesn't do on the
clock it doesn't do at all, least of all while its rival is timed. Without a sandbox only the
worker's process group is stopped. The clock runs from right before it is woken until it is stopped
again, and its GPU, given a fence, idle. CPU time that it uses while it is stopped makes its output
invalid.
"""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slipstream.kernels.variants import MANIFEST

from .engine import Generation
from .errors import EngineError, EngineFailedError, InvalidOutputError
from .fence import GpuFence
from .protocol import (
    KERNELS,
    MAX_FRAME_BYTES,
    KernelCase,
    check_acceptance,
    check_kernel_cases,
    check_logits,
    check_profile,
    check_tokens,
    check_vocab_size,
    has_data,
    one_line,
    receive_frame,
    send_frame,
)
from .sandbox import AnySandbox, Launch, Limits, NoSandbox, seccomp_file

_LOAD_TIMEOUT_S = _TEST_TIMEOUT_S = 300.0
_SERVER_TIMEOUT_S = 900.0  # the challenge's, for a server to be ready
_SECONDS_PER_TOKEN = 2.0  # far slower than anything worth measuring
_LOOK_EVERY_S = 0.5
_KEEPER_TIMEOUT_S = 10.0
_MAX_WORK_WHILE_STOPPED_S = 0.05  # stopping takes effect within a scheduler's tick, per thread
_LOG_TAIL = 32_000
_ENDED = "the engine's process ended"
_LOOK = struct.Struct(">QQQ")


@dataclass(frozen=True)
class _Asked:
    """An answer, and how long it took: as long as the engine could run."""

    answer: dict[str, Any]
    duration_s: float


class ChildEngine:
    """Starts a tree behind `inside/keeper.py` and speaks frames with it. Satisfies `Engine`.

    Args:
        max_context: tokens that prompt and continuation may have together.
        sandbox: where it runs; a plain child process by default.
        fence: of the GPU that it runs on, if it runs on one.
        programs: of a server, the folder whose `python` its command means; None: this Python's.
        kernels: where the shipped engine's were built; None: it builds them itself.
    """

    def __init__(
        self,
        tree: Path,
        model_dir: Path,
        *,
        max_context: int,
        sandbox: AnySandbox | None = None,
        limits: Limits | None = None,
        fence: GpuFence | None = None,
        programs: Path | None = None,
        kernels: Path | None = None,
    ) -> None:
        self._limits, self._fence = limits or Limits(), fence
        self._stopped_at: int | None = None  # CPU ticks when it was stopped
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the engine; has no name)
        self._sock, theirs = socket.socketpair()
        self._control, its_control = socket.socketpair()
        self._control.settimeout(_KEEPER_TIMEOUT_S)
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with theirs, its_control, seccomp_file() as seccomp:
                descriptors = (theirs.fileno(), its_control.fileno(), seccomp)
                box = sandbox or NoSandbox()
                launch = box.launch(tree, model_dir, descriptors, self._limits, programs, kernels)
                self._scratch = launch.scratch
                self._process = self._start(launch, descriptors)
            request = {
                "tree": launch.tree,
                "model": launch.model,
                "max_context": max_context,
                "programs": str(programs or Path(sys.executable).parent),
            }
            serves = (tree / MANIFEST).is_file()
            timeout_s = _SERVER_TIMEOUT_S if serves else _LOAD_TIMEOUT_S
            self._vocab_size = self._load(request, timeout_s)
        except BaseException:
            self.close()
            raise

    def _load(self, request: dict[str, Any], timeout_s: float) -> int:
        """Have the engine loaded; return the size of its vocabulary."""
        answer = self._ask(request, timeout_s).answer
        try:
            return check_vocab_size(answer)
        except EngineError as error:
            error.log = self._printed()
            raise

    def _start(self, launch: Launch, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                launch.command,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=launch.environment,
                cwd=launch.scratch or "/",
                start_new_session=True,  # Ctrl-C is the parent's
            )
        except OSError as error:
            reason = f"{launch.command[0]}: {error.strerror or error}"
            raise EngineFailedError(f"its process doesn't start: {reason}") from error

    @property
    def vocab_size(self) -> int:
        """Number of tokens that logits range over."""
        return self._vocab_size

    def generate(self, prompt: Sequence[int], num_tokens: int) -> Generation:
        """Decode exactly `num_tokens` greedy tokens after `prompt`, on the parent's clock."""
        request = {"do": "generate", "prompt": list(prompt), "num_tokens": num_tokens}
        timeout_s = 60.0 + _SECONDS_PER_TOKEN * (num_tokens + len(prompt) / 8)
        asked = self._ask(request, timeout_s)
        tokens = check_tokens(asked.answer, num_tokens, self._vocab_size)
        return Generation(tuple(tokens), asked.duration_s)

    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Read `prompt` and return the next token's logits [vocab_size]."""
        asked = self._ask({"do": "begin", "prompt": list(prompt)}, 60.0 + len(prompt))
        return check_logits(asked.answer, self._vocab_size, 1).reshape(-1)

    def reveal(self, token: int) -> NDArray[np.float32]:
        """Tell the token that followed and return the logits after it."""
        asked = self._ask({"do": "reveal", "token": token}, 60.0)
        return check_logits(asked.answer, self._vocab_size, 1).reshape(-1)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Tell several tokens at once and return the logits after each, [len(tokens), vocab_size].

        Only for the reference, which is trusted: it learns tokens before it has committed itself.
        """
        rows = max(1, MAX_FRAME_BYTES // (5 * self._vocab_size))
        parts = []
        for start in range(0, len(tokens), rows):
            some = list(tokens[start : start + rows])
            asked = self._ask({"do": "extend", "tokens": some}, 60.0 + len(some))
            parts.append(check_logits(asked.answer, self._vocab_size, len(some)))
        return np.concatenate(parts)

    def profile(self, prompt: Sequence[int], num_tokens: int) -> dict[str, float]:
        """Return seconds per decoded token and component, as the engine itself measures them."""
        request = {"do": "profile", "prompt": list(prompt), "num_tokens": num_tokens}
        timeout_s = 60.0 + 10 * _SECONDS_PER_TOKEN * (num_tokens + len(prompt) / 8)
        return check_profile(self._ask(request, timeout_s).answer)

    def acceptance(self) -> tuple[float, ...]:
        """Return the share of drafted tokens that came true, by position; its own account."""
        return check_acceptance(self._ask({"do": "acceptance"}, 60.0).answer)

    def test_kernels(self, kernels: Sequence[str]) -> tuple[KernelCase, ...]:
        """Run the reference tests of some kernels, or of all, in the engine's process."""
        asked = tuple(kernels) or KERNELS
        found = self._ask({"do": "test", "kernels": list(asked)}, _TEST_TIMEOUT_S)
        return check_kernel_cases(found.answer, asked)

    def cpu_s(self) -> float:
        """Return the CPU seconds that the engine has used so far."""
        return self._order(b"L")[0] / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Kill the engine and everything it started, and remove its scratch folder."""
        self._sock.close()
        self._control.close()  # the keeper then kills what it keeps, and ends
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_KEEPER_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], timeout_s: float) -> _Asked:
        """Wake the engine, put one request to it, stop it again: all of that is on the clock."""
        start = time.perf_counter()
        try:
            self._wake()
            if has_data(self._sock):
                raise InvalidOutputError("it answered before it was asked")
            answer = self._exchange(request, timeout_s)
            self._stop()
            if self._fence is not None:  # what it has queued on the GPU doesn't stop with it
                self._fence.wait()
        except EngineError as error:
            error.log = error.log or self._printed()
            with contextlib.suppress(EngineFailedError):  # the first failure is the one to report
                self._stop()
            raise
        return _Asked(answer, time.perf_counter() - start)

    def _wake(self) -> None:
        if self._stopped_at is None:
            return
        ticks, _, _ = self._order(b"W")
        worked_s = (ticks - self._stopped_at) / os.sysconf("SC_CLK_TCK")
        self._stopped_at = None
        if worked_s > _MAX_WORK_WHILE_STOPPED_S:
            raise InvalidOutputError(f"used {worked_s:.2f} s of CPU time while it was stopped")

    def _stop(self) -> None:
        self._stopped_at, _, _ = self._order(b"S")

    def _exchange(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            send_frame(self._sock, request, timeout_s)
            return receive_frame(self._sock, timeout_s, self._watch(), _LOOK_EVERY_S)
        except (EngineFailedError, OSError) as error:
            reason = _ENDED if isinstance(error, OSError) else str(error)
            if (
                reason == _ENDED and self._process is not None
            ):  # its socket closes a moment before its exit status is known
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=1.0)
            raise EngineFailedError(f"{reason}{self._last_words()}") from error

    def _watch(self) -> Callable[[], None]:
        def look() -> None:
            _, tasks, resident = self._order(b"L")
            if tasks > self._limits.num_tasks:
                raise EngineFailedError(f"{tasks} tasks alive, limit {self._limits.num_tasks}")
            if resident > self._limits.memory_bytes:
                limit_gb = self._limits.memory_bytes / 1e9
                raise EngineFailedError(f"{resident / 1e9:.1f} GB resident, limit {limit_gb:.1f}")

        return look

    def _order(self, order: bytes) -> tuple[int, int, int]:
        """Have the keeper do something; return CPU ticks, tasks alive, resident bytes."""
        try:
            self._control.sendall(order)
            answer = b""
            while len(answer) < _LOOK.size:
                chunk = self._control.recv(_LOOK.size - len(answer))
                if not chunk:
                    raise ConnectionError
                answer += chunk
        except OSError as error:
            raise EngineFailedError(f"{_ENDED}{self._last_words()}") from error
        ticks, tasks, resident = _LOOK.unpack(answer)
        return ticks, tasks, resident

    def _printed(self) -> str:
        """Return the end of what the child printed."""
        # The child writes at the same offset: read without moving it.
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - _LOG_TAIL)
        return os.pread(self._log.fileno(), _LOG_TAIL, start).decode(errors="replace").strip()

    def _last_words(self) -> str:
        """Return its exit code and the last line it printed, which usually names the cause."""
        tail = self._printed()
        status = None if self._process is None else self._process.poll()
        code = "" if status is None else f" (exit {status})"
        last = one_line(tail.splitlines()[-1]) if tail else ""
        return f"{code}: {last}" if last else code
