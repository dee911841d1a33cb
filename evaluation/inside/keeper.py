"""The first process beside an engine: sets limits, stops and wakes the engine, buries the dead.

Started as a file in isolated mode, it imports the standard library only, and never anything of a
variant. In the sandbox it is process 1 of its own PID namespace: signals from inside can't reach
it, and when it ends, the kernel kills everything else there. It ends when the parent closes the
control socket, which a killed parent does too.

One byte on the control socket is an order, answered with three 8-byte numbers: CPU time used so
far by all processes of the engine (clock ticks), tasks alive (processes and threads), and resident
memory (bytes). Outside of a PID namespace it knows of the worker and its process group only.

    S   stop all processes, then answer
    W   answer, then wake them up: more CPU time than at S means that they ran while stopped
    L   look
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4


def main() -> None:
    """Run `worker.py` with a socket; arguments: socket, control socket, limits as JSON."""
    sock, control, limits = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    _set_limits(limits)
    worker = os.fork()
    if worker == 0:
        os.close(control)
        os.setsid()
        script = Path(__file__).with_name("worker.py")
        os.execv(sys.executable, [sys.executable, "-I", str(script), str(sock)])
    os.close(sock)
    # An engine runs as the same user: it must not look into this process, nor reach its sockets.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
    _keep(socket.socket(fileno=control), worker, limits["DATA"])


def _set_limits(limits: dict[str, int]) -> None:
    """Set hard limits; a process without privileges can't raise them again."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        capped = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (capped, capped))
    # If memory runs out all the same, the kernel shall pick the engine and not its parent.
    Path("/proc/self/oom_score_adj").write_text("1000")


def _keep(control: socket.socket, worker: int, enough: int) -> None:
    wakeup, waker = socket.socketpair()
    for end in (wakeup, waker):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control, wakeup], [], [])
        if wakeup in ready:
            wakeup.recv(4096)
            code = _bury(worker)
            if code is not None:
                _signal_all(worker, signal.SIGKILL)  # what the worker started goes with it
                os._exit(code if code >= 0 else 128 - code)  # as shells report signals
        if control in ready:
            order = control.recv(1)
            if not order:
                _signal_all(worker, signal.SIGKILL)
                os._exit(0)
            if order == b"S":
                _signal_all(worker, signal.SIGSTOP)
            answer = _look(worker, enough)
            if order == b"W":
                _signal_all(worker, signal.SIGCONT)
            control.sendall(struct.pack(">QQQ", *answer))


def _signal_all(worker: int, number: int) -> None:
    """Signal everything of the engine at once, so that nothing can fork away meanwhile."""
    try:
        if os.getpid() == 1:
            os.kill(-1, number)  # everyone in this PID namespace but this process
        else:
            os.killpg(worker, number)
    except ProcessLookupError:
        pass


def _bury(worker: int) -> int | None:
    """Reap dead children; return the worker's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == worker:
            code = os.waitstatus_to_exitcode(status)


def _look(worker: int, enough: int) -> tuple[int, int, int]:
    """Return CPU ticks of the living and the buried, tasks alive, resident bytes.

    Pages that processes share are counted once if counting them often gives more than `enough`.
    """
    ticks = tasks = pages = 0
    stats = _stats(worker)
    for stat in stats.values():
        ticks += sum(int(field) for field in stat[11:15])  # utime, stime, cutime, cstime
        tasks += int(stat[17])
        pages += int(stat[21])
    resident = pages * resource.getpagesize()
    if resident > enough and len(stats) > 1:
        resident = sum(_proportional_bytes(pid) for pid in stats)
    return ticks, tasks, resident


def _proportional_bytes(pid: str) -> int:
    """Return a process' share of the memory that it maps."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # it ended meanwhile
        pass
    return 0


def _stats(worker: int) -> dict[str, list[str]]:
    """Return the fields of /proc/PID/stat from the state on, for every process of the engine."""
    alone = os.getpid() == 1  # then every process here is the engine's
    stats = {}
    pids = [path.name for path in Path("/proc").glob("[0-9]*")] if alone else [str(worker)]
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        stats[pid] = text.rpartition(")")[2].split()
    return stats


if __name__ == "__main__":
    main()
