"""An engine in a child process: the parent owns the clock, the prompts and the numbers."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .engine import Generation
from .errors import EngineFailedError
from .protocol import check_logits, check_tokens, check_vocab_size, receive_frame, send_frame

_WORKER = Path(__file__).resolve().with_name("worker.py")
_LOAD_TIMEOUT_S = 300.0
_SECONDS_PER_TOKEN = 2.0  # far slower than anything worth measuring
_LOG_TAIL = 2000
_ENDED = "the engine's process ended"


class ChildEngine:
    """Starts `worker.py` on a tree and speaks frames with it. Satisfies `Engine`."""

    def __init__(self, tree: Path, model_dir: Path, *, max_context: int) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="slipstream-child-"))
        self._log = self._scratch / "log"
        ours, theirs = socket.socketpair()
        self._sock = ours
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self._scratch,
                start_new_session=True,  # Ctrl-C is the parent's; killing the group kills all
            )
        try:
            request = {"tree": str(tree), "model": str(model_dir), "max_context": max_context}
            self._vocab_size = check_vocab_size(self._ask(request, _LOAD_TIMEOUT_S))
        except BaseException:
            self.close()
            raise

    @property
    def vocab_size(self) -> int:
        """Number of tokens that logits range over."""
        return self._vocab_size

    def generate(self, prompt: Sequence[int], num_tokens: int) -> Generation:
        """Decode exactly `num_tokens` greedy tokens after `prompt`, on the parent's clock."""
        request = {"do": "generate", "prompt": list(prompt), "num_tokens": num_tokens}
        timeout_s = 60.0 + _SECONDS_PER_TOKEN * (num_tokens + len(prompt) / 8)
        start = time.perf_counter()
        answer = self._ask(request, timeout_s)
        duration_s = time.perf_counter() - start
        return Generation(tuple(check_tokens(answer, num_tokens, self._vocab_size)), duration_s)

    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Read `prompt` and return the next token's logits [vocab_size]."""
        answer = self._ask({"do": "begin", "prompt": list(prompt)}, 60.0 + len(prompt))
        return check_logits(answer, self._vocab_size)

    def reveal(self, token: int) -> NDArray[np.float32]:
        """Tell the token that followed and return the logits after it."""
        return check_logits(self._ask({"do": "reveal", "token": token}, 60.0), self._vocab_size)

    def close(self) -> None:
        """Kill the child and everything it started, and remove its scratch folder."""
        self._sock.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            send_frame(self._sock, request)
            return receive_frame(self._sock, timeout_s)
        except (EngineFailedError, OSError) as error:
            reason = _ENDED if isinstance(error, OSError) else str(error)
            if reason == _ENDED:  # its socket closes a moment before its exit status is known
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=1.0)
            raise EngineFailedError(f"{reason}{self._last_words()}") from error

    def _last_words(self) -> str:
        """Return the end of the child's log, which usually names the cause."""
        tail = self._log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
        status = self._process.poll()
        code = "" if status is None else f" (exit {status})"
        return f"{code}: {tail.splitlines()[-1]}" if tail else code

    def _environment(self) -> dict[str, str]:
        """Return the child's whole environment: nothing of the parent's, no keys."""
        scratch = str(self._scratch)
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": scratch,
            "TMPDIR": scratch,
            "USER": "engine",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",  # a tree is named by its content: leave no litter
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
