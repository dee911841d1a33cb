"""A run's folder, and whether a process is working on the run now."""

from pathlib import Path

from filelock import FileLock, Timeout

from slipstream.evaluation.home import data_dir


def run_dir(run: str) -> Path:
    """Return the folder of a run: workshop, checkpoints, report, lock."""
    return data_dir() / "runs" / run


def lock_of(run: str) -> FileLock:
    """Return the lock that a process holds while it works on the run."""
    return FileLock(run_dir(run) / ".lock")


def is_alive(run: str) -> bool:
    """Whether some process holds the run's lock; the kernel frees it when that process dies."""
    if not run_dir(run).is_dir():
        return False
    try:
        with lock_of(run).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
