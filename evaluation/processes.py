"""Stations as processes on this machine: one for each GPU, which sees no other."""

import contextlib
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

from .errors import WorkerLostError
from .station import Answer, Assignment, Make, Station

_CLOSING_TIMEOUT_S = 15.0
_GONE = (EOFError, OSError)


class ProcessLine:
    """A station in a process of its own. Satisfies `Line`.

    Args:
        gpu: number or UUID of the GPU that it may see; None for what this process sees.
        make: opens its evaluator, if not a bench for the challenge; a function of some module.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        gpu: str | None = None,
        make: Make | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        given = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | given,
                start_new_session=True,  # Ctrl-C is the parent's
            )
        self._pipe = Connection(ours.detach())
        self._what = "this machine" if gpu is None else f"GPU {gpu}"
        self._tell((assignment, make))

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ask(self, method: str, *arguments: Any) -> Answer:
        """Put one question to the station.

        Raises:
            WorkerLostError: its process ended.
        """
        self._tell((method, arguments))
        try:
            answer: Answer = self._pipe.recv()
        except _GONE as error:
            raise self._lost() from error
        return answer

    def close(self) -> None:
        """Hang up; kill the process if it doesn't end by itself."""
        self._pipe.close()
        try:
            self._process.wait(_CLOSING_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except _GONE as error:
            raise self._lost() from error

    def _lost(self) -> WorkerLostError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return WorkerLostError(
            f"the worker on {self._what} ended (exit {self._process.poll()}), and is started again"
        )


def _serve(descriptor: int) -> None:
    """Answer until whoever asks hangs up, or dies."""
    with Connection(descriptor) as pipe:
        try:
            assignment, make = pipe.recv()
        except _GONE:
            return
        station = Station(assignment, make)
        try:
            while True:
                method, arguments = pipe.recv()
                pipe.send(station.ask(method, *arguments))
        except _GONE:
            return
        finally:
            station.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
