"""How many experiments planners need, replayed on a table of measured speeds; does memory help?

    python benchmarks/planner_race.py [--seeds 50] [--cap 80] [--earlier 24]

Each planner drives slipstream's own loop (graph, memory, briefing, acceptance rule) on the table of
`lever_table.py`: every verdict rests on the measured speed and quality of its combination, with the
noise of measured A/A pairs. Counted are the experiments until the champion is within 5 % of the
best combination that passes the quality gate. A search that doesn't get there counts as one more
than the cap, which makes its mean too small, never too large.

    planner, remembers   after an earlier run on another workload (long prompts): no champion comes
                         from there, but the lever ledger and how predictions came true
    planner, forgets     the same planner in an empty memory
    random               uniform over the levers' possible values
    best of 8            of eight random ones, what the roofline favours
    greedy               the single lever that the roofline favours; no exploration, no bundle

`ratio_vs_random` is the mean of the planner with memory over random's, `ratio_without_memory` that
of the one without. `p_memory` is a one-sided Wilcoxon signed-rank test, paired by seed: does
remembering take fewer experiments? Seeds draw the noise, TPE's samples and random's settings; table
and task are one, so p says that the difference is not noise, not how large it is elsewhere.

Writes the curve, the mean best-so-far share of the optimum by experiment, to
`data/planner_race.csv`: a search ends when it is there, and its curve stays at what it had. The
last line is JSON.
"""

import argparse
import csv
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
from lever_space import DATA
from numpy.typing import NDArray
from race_planners import Greedy, RandomSearch
from rich.console import Console
from rich.table import Table
from scipy import stats
from table_loop import LeverTable, challenge_on, in_table, levers_that_vary, load_table, search

from slipstream.agents.offline_planner import OfflinePlanner
from slipstream.agents.roles import Planner
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.memory.store import open_memory

WORKLOAD, EARLIER = "short", "long"
NEAR = 0.95
REMEMBERS, FORGETS, RANDOM = "planner, remembers", "planner, forgets", "random"
PLANNERS = (REMEMBERS, FORGETS, RANDOM, "best of 8", "greedy")


def race(name: str, seed: int, cap: int, earlier: int, folder: Path) -> list[float]:
    """Return the champion's tokens/s after each experiment, in a memory of its own."""
    table = load_table(folder)
    goal = NEAR * table.best(WORKLOAD, challenge_on(WORKLOAD).tier)[1]
    # In memory: disks differ, and what is counted is experiments.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as home:
        at_home = patch.dict(os.environ, SLIPSTREAM_HOME=home)
        with at_home, in_table(table), open_memory() as memory:
            if name == REMEMBERS:
                search(table, EARLIER, OfflinePlanner(), memory, seed=10_000 + seed, num=earlier)
            planner = make_planner(name, table, seed)
            return search(table, WORKLOAD, planner, memory, seed=seed, num=cap, goal=goal)


def make_planner(name: str, table: LeverTable, seed: int) -> Planner:
    if name in (REMEMBERS, FORGETS):
        return OfflinePlanner()
    if name == "greedy":
        return Greedy()
    best_of = 1 if name == RANDOM else int(name.removeprefix("best of "))
    return RandomSearch(levers_that_vary(table), seed, best_of)


def needed(curve: list[float], goal: float, cap: int) -> int:
    """Return how many experiments it took to reach the goal; one more than the cap if too few."""
    return next((count for count, tps in enumerate(curve, 1) if tps >= goal), cap + 1)


def shares(curve: list[float], start: float, best: float, cap: int) -> NDArray[np.float64]:
    """Return best-so-far over the optimum after 0 … cap experiments; the last one stays."""
    padded = [start, *curve, *[(curve or [start])[-1]] * (cap - len(curve))]
    return np.asarray(padded[: cap + 1]) / best


def run_all(
    seeds: range, cap: int, earlier: int, folder: Path
) -> dict[tuple[str, int], list[float]]:
    """Return the curve of each planner and seed."""
    jobs = list(product(PLANNERS, seeds))
    names, numbers = zip(*jobs, strict=True)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        curves = pool.map(race, names, numbers, repeat(cap), repeat(earlier), repeat(folder))
        return dict(zip(jobs, curves, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--cap", type=int, default=80, help="experiments that a search may take")
    parser.add_argument("--earlier", type=int, default=24, help="experiments of the earlier run")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of table and curve")
    options = parser.parse_args()
    table, seeds, cap = load_table(options.data), range(options.seeds), options.cap
    settings, best = table.best(WORKLOAD, challenge_on(WORKLOAD).tier)
    start = table.speed(SEED_SETTINGS, WORKLOAD)
    curves = run_all(seeds, cap, options.earlier, options.data)
    counts = {
        name: np.array([needed(curves[name, seed], NEAR * best, cap) for seed in seeds])
        for name in PLANNERS
    }
    means = {
        name: np.mean([shares(curves[name, seed], start, best, cap) for seed in seeds], axis=0)
        for name in PLANNERS
    }
    write_curve(means, options.data / "planner_race.csv")
    levers = {k: v for k, v in settings.items() if v != SEED_SETTINGS[k]}
    allowed = table.allowed(challenge_on(WORKLOAD).tier)
    near = sum(table.speed(settings, WORKLOAD) >= NEAR * best for settings in allowed)
    console = Console(width=100, soft_wrap=True)
    console.print(
        f"{len(table.tps)} combinations; the best allowed one decodes {best:.0f} tokens/s, the "
        f"seed {start:.0f}: {levers}. {near} are within 5 % of it. One pair strays by "
        f"{np.std(table.noise):.1%}"
    )
    print_table(console, counts, means, cap)
    print(json.dumps(figures(counts, len(seeds), cap, options.earlier)))


def figures(
    counts: dict[str, NDArray[np.int64]], num_seeds: int, cap: int, earlier: int
) -> dict[str, object]:
    """Return what the last line says."""
    fewer = counts[REMEMBERS] - counts[FORGETS]
    p = float(stats.wilcoxon(fewer, alternative="less").pvalue) if fewer.any() else 1.0
    random_mean = float(counts[RANDOM].mean())
    return {
        "ratio_vs_random": round(float(counts[REMEMBERS].mean()) / random_mean, 4),
        "ratio_without_memory": round(float(counts[FORGETS].mean()) / random_mean, 4),
        "p_memory": float(f"{p:.3g}"),
        "seeds": num_seeds,
        "cap": cap,
        "earlier": earlier,
        "mean": {name: round(float(values.mean()), 2) for name, values in counts.items()},
        "median": {name: float(np.median(values)) for name, values in counts.items()},
        "censored": {name: int((values > cap).sum()) for name, values in counts.items()},
    }


def write_curve(means: dict[str, NDArray[np.float64]], path: Path) -> None:
    """Write the mean share of the optimum after each number of experiments."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["experiments", *means])
        for count, row in enumerate(zip(*means.values(), strict=True)):
            writer.writerow([count, *(f"{share:.4f}" for share in row)])


def print_table(
    console: Console,
    counts: dict[str, NDArray[np.int64]],
    means: dict[str, NDArray[np.float64]],
    cap: int,
) -> None:
    looks = [count for count in (5, 10, 20, 40, 80) if count <= cap]
    table = Table(title="experiments until within 5 % of the best", box=None)
    columns = ("planner", "mean", "median", f"not in {cap}", *(f"after {n}" for n in looks))
    for column in columns:
        table.add_column(column, justify="left" if column == "planner" else "right")
    for name, values in counts.items():
        table.add_row(
            name,
            f"{values.mean():.1f}",
            f"{np.median(values):g}",
            str(int((values > cap).sum())),
            *(f"{means[name][count]:.0%}" for count in looks),
        )
    console.print(table)


if __name__ == "__main__":
    main()
