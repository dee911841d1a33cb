"""The parent's side of `inside/gpu_fence.py`: knows when a GPU has nothing left to do.

A stopped process can have left work in the GPU's queues, to be done while its rival is timed. So
the clock of a request runs until the GPU is idle.
"""

import math
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Self

from .errors import EngineFailedError, InvalidOutputError, SlipstreamError

_SCRIPT = Path(__file__).resolve().parent / "inside" / "gpu_fence.py"
_START_TIMEOUT_S = 60.0
_ANSWER = struct.Struct(">d")


class GpuFence:
    """A trusted process with a context on one GPU.

    Args:
        device: which GPU, as CUDA numbers them.
        timeout_s: how long work may go on after an answer.

    Raises:
        SlipstreamError: no usable CUDA driver, or a GPU that is busy.
    """

    def __init__(self, device: int = 0, *, timeout_s: float = 10.0) -> None:
        self._device, self._timeout_s = device, timeout_s
        self._closed = True
        self.start()

    def start(self) -> None:
        """Start the process, unless it is there; to be called while no engine runs.

        Raises:
            SlipstreamError: no usable CUDA driver, or a GPU that is busy.
        """
        if not self._closed:
            return
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", str(_SCRIPT)),
                    *(str(theirs.fileno()), str(self._device), str(self._timeout_s)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the parent's
            )
        try:
            self.usual_s = self._receive(_START_TIMEOUT_S)
        except OSError as error:
            self._process.kill()
            lines = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
            self._sock.close()
            reason = lines[-1] if lines else str(error)
            raise SlipstreamError(
                f"GPU {self._device}: {reason}; check the driver with nvidia-smi"
            ) from error
        self._closed = False

    def wait(self) -> float:
        """Wait until the GPU is idle; return how many seconds that took.

        Raises:
            InvalidOutputError: it wasn't within the time limit.
            EngineFailedError: nobody can tell, because the process hangs or ended. It is closed
                then: an answer that came later would be taken for the next one.
        """
        try:
            self._sock.sendall(b"?")
            waited_s = self._receive(2 * self._timeout_s + 1.0)
        except OSError as error:
            self.close()
            reason = f"GPU {self._device} doesn't tell whether it is idle: {error}"
            raise EngineFailedError(reason) from error
        if math.isnan(waited_s):
            raise InvalidOutputError(
                f"the GPU was still at work {self._timeout_s:g} s after the answer"
            )
        return waited_s

    def close(self) -> None:
        """End the process; `start` starts another."""
        if self._closed:
            return
        self._closed = True
        self._sock.close()
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _receive(self, timeout_s: float) -> float:
        self._sock.settimeout(timeout_s)
        answer = b""
        while len(answer) < _ANSWER.size:
            chunk = self._sock.recv(_ANSWER.size - len(answer))
            if not chunk:
                raise ConnectionError("its process ended")
            answer += chunk
        value: float = _ANSWER.unpack(answer)[0]
        return value
