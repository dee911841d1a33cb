"""Many processes write to one memory at once, on SQLite and Postgres.

    python benchmarks/memory_writers.py [--writers 32] [--seconds 60] [--backend both]

Each writer claims a variant, writes a hypothesis, an experiment, three pairs under the claim and a
verdict, and starts again; all of them hit the same few ledger entries. A tenth of the claims are
on the same keys, so that writers compete. The clock starts when all of them are ready, and stops
when the last is through. Afterwards every acknowledged row must be there, and the ledger must count
what the verdicts say: no update is lost. Every error counts, deadlocks first.

The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from memories import make_run
from postgres import Server

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.statistics import Estimate
from slipstream.kernels.variants import VariantStore
from slipstream.memory import upkeep
from slipstream.memory.claims import Claim
from slipstream.memory.logs import LogStore
from slipstream.memory.queries import TABLES
from slipstream.memory.records import Experiment, Finding, Hypothesis, Variant
from slipstream.memory.store import Memory, open_memory

SHARED_EVERY = 10
SHARED_KEYS = 4


def write(url: str, number: int, seconds: float, ready: Any, results: Any) -> None:
    """Write until the time is up; report what was acknowledged and how long each took.

    Args:
        ready: barrier that all writers wait at before they begin.
    """
    acknowledged: list[str] = []
    errors: list[str] = []
    times: list[float] = []
    refused = 0
    with open_memory(url) as memory:
        run = make_run(f"w{number}")
        memory.add_run(run)
        memory.add_variant(Variant(f"w{number}-seed", None, "e", {}, run.id, 1.0))
        count = 0
        ready.wait(timeout=300)
        started = time.perf_counter()
        while time.perf_counter() < started + seconds:
            count += 1
            try:
                begun = time.perf_counter()
                if one(memory, run.id, number, count):
                    acknowledged.append(f"{run.id}-{count:05d}")
                    times.append(time.perf_counter() - begun)
                else:
                    refused += 1
            except Exception as error:  # counted and shown
                errors.append(f"{type(error).__name__}: {error}"[:200])
        elapsed_s = time.perf_counter() - started
    results.put((acknowledged, errors, times, refused, elapsed_s))


def one(memory: Memory, run: str, number: int, count: int) -> bool:
    """Carry one experiment through; return False if its claim was somebody else's."""
    name = f"{run}-{count:05d}"
    turn, rest = divmod(count, SHARED_EVERY)
    key = f"measure|c|m|{name}" if rest else f"measure|c|m|shared-{turn % SHARED_KEYS}"
    claim = memory.claims.acquire(key, run)
    if not isinstance(claim, Claim):
        return False
    settings = {"weights": str(count % 5)}
    memory.add_variant(Variant(name, f"{run}-seed", "e", settings, run, 1.0))
    memory.add_hypotheses(
        [Hypothesis(name, run, count, "agent", f"{run}-seed", "weights", settings, "why", 0.1, 1.0)]
    )
    memory.add_experiment(Experiment(name, run, name, name, f"{run}-seed", 1.0))
    for index in range(3):
        memory.add_pair(name, Pair(Stage.TEST, index, ("p", "q"), "ABBA", 10.0, 9.0), claim)
    gain = Estimate(0.01 * (number % 7), 0.01, 12)
    judgement = Judgement(Verdict.KEPT, Cause.GAIN, "so it is", gain, None, 50.0)
    finding = Finding(name, "weights", str(count % 5), 0.1, "why", "later", False, 1.0)
    memory.record(name, judgement, finding, float(count), claim)
    return True


def measure(url: str, folder: Path, writers: int, seconds: float) -> dict[str, Any]:
    open_memory(url).close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ready = context.Barrier(writers)
    processes = [
        context.Process(target=write, args=(url, number, seconds, ready, results))
        for number in range(writers)
    ]
    for process in processes:
        process.start()
    told = [results.get(timeout=seconds + 420) for _ in processes]
    for process in processes:
        process.join()
    acknowledged = {name for names, *_ in told for name in names}
    errors = [error for _, own, *_ in told for error in own]
    times = [value for _, _, own, *_ in told for value in own]
    elapsed_s = max(own for *_, own in told)
    with open_memory(url) as memory:
        judged = {e.id for e in memory.experiments() if e.verdict is not None}
        ledger = TABLES["ledger"]
        counted = memory.database.read(lambda c: c.scalar(select(func.sum(ledger.c.kept))))
        pairs = memory.database.read(
            lambda c: c.scalar(select(func.count()).select_from(TABLES["measurements"]))
        )
        stores = VariantStore(folder / "variants"), LogStore(folder / "logs")
        faults = upkeep.check(memory, *stores, folder / "runs")
    return {
        "writers": writers,
        "seconds": elapsed_s,
        "experiments": len(judged),
        "experiments_per_s": len(judged) / elapsed_s,
        "rows_per_s": 8 * len(judged) / elapsed_s,
        "median_ms": 1e3 * statistics.median(times),
        "p99_ms": 1e3 * sorted(times)[int(0.99 * len(times))],
        "claims_refused": sum(refused for *_, refused, _ in told),
        "deadlocks": sum("deadlock" in error or "locked" in error for error in errors),
        "errors": len(errors),
        "lost": len(acknowledged - judged),
        "lost_updates": len(judged) - int(counted or 0),
        "pairs_missing": 3 * len(judged) - int(pairs or 0),
        "faults": len(faults),
        "first_error": errors[0] if errors else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", choices=["sqlite", "postgres", "both"], default="both")
    chosen = parser.parse_args()
    names = ["sqlite", "postgres"] if chosen.backend == "both" else [chosen.backend]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="writers-") as text:
            folder = Path(text)
            server = Server(folder / "pg") if name == "postgres" else None
            url = server.new_database() if server else f"sqlite:///{folder}/m.db"
            try:
                found[name] = measure(url, folder, chosen.writers, chosen.seconds)
            finally:
                if server:
                    server.stop("immediate")
    table = Table(box=None)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for figure in found[names[0]]:
        values = [found[name][figure] for name in names]
        table.add_row(figure, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    Console(soft_wrap=True).print(table)
    print(json.dumps(found))
    bad = ("deadlocks", "errors", "lost", "lost_updates", "pairs_missing", "faults")
    sys.exit(any(one[figure] for one in found.values() for figure in bad))


if __name__ == "__main__":
    os.environ.setdefault("SLIPSTREAM_HOME", tempfile.gettempdir())
    main()
