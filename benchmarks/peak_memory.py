"""Peak memory of a whole command with everything it starts, and its wall time.

    python benchmarks/peak_memory.py -- .venv/bin/slipstream run --experiments 3

Sums the proportional set size (PSS: shared pages counted once) of the command's process tree, four
times a second; the peak between two samples can be missed. The last line is JSON.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def tree(pid: int) -> list[int]:
    return [pid, *(pid for child in children(pid) for pid in tree(child))]


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", nargs="+")
    command: list[str] = parser.parse_args().command
    begun = time.monotonic()
    process = subprocess.Popen(command)
    peak_mb, most = 0.0, 0
    while process.poll() is None:
        try:
            pids = tree(process.pid)
            total = sum(pss_mb(pid) for pid in pids)
        except (FileNotFoundError, ProcessLookupError):
            continue  # one of them ended while we looked
        if total > peak_mb:
            peak_mb, most = total, len(pids)
        time.sleep(0.25)
    row = {
        "peak_mb": round(peak_mb),
        "processes_at_peak": most,
        "wall_s": round(time.monotonic() - begun, 1),
        "exit": process.returncode,
    }
    print(f"\npeak {peak_mb:.0f} MB in {most} processes, {row['wall_s']} s")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
