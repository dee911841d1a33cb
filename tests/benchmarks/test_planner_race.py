"""The race's parts on a tiny table: five levers, speeds by arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest
from lever_space import SUMMARY, TABLE, Row, combinations, key_of, read_table, write_table
from planner_race import FORGETS, REMEMBERS, figures, needed, race, shares
from race_planners import Greedy, RandomSearch
from table_loop import (
    MACHINE,
    SHAPE,
    LeverTable,
    challenge_on,
    in_table,
    levers_that_vary,
    load_table,
    search,
)

from slipstream.agents.offline_planner import OfflinePlanner
from slipstream.kernels import fit
from slipstream.kernels.catalogue import SHIPPED
from slipstream.kernels.census import bytes_per_token
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.memory.ledger import ledger
from slipstream.memory.records import RunState
from slipstream.memory.store import open_memory

VARIED = ("weights", "head", "cache", "step", "threads")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a table: int4-g64 is the fastest and fails the gate."""
    rows = []
    for step, overhead_s in (("native", 1e-3), ("eager", 8e-3)):
        for settings in combinations(SHAPE, MACHINE, VARIED, step=step):
            read_s = sum(bytes_per_token(SHAPE, settings).values()) / 25e9
            seconds = (overhead_s + read_s) * (2 if settings["threads"] == "1" else 1)
            rows.append(Row(settings, {"short": 1 / seconds, "long": 0.5 / seconds}, 1))
    write_table(rows, tmp_path / TABLE)
    quality = []
    for weights, head in {(row.settings["weights"], row.settings["head"]) for row in rows}:
        bad = "int4-g64" in (weights, head)
        documents = [[f"d{i}", 50, 140.0 if bad else 100.0, 100.0, 0.0, 50] for i in range(4)]
        splits = {"public": {"documents": documents}}
        if not bad:
            splits["held-out"] = {"documents": documents}
        quality.append({"weights": weights, "head": head, "activations": "bfloat16", **splits})
    noise = np.random.default_rng(0).normal(0, 0.01, 40).tolist()
    text = json.dumps({"quality": quality, "aa_pairs": noise, "bandwidth_gbps": 25.0})
    (tmp_path / SUMMARY).write_text(text)
    return tmp_path


@pytest.fixture
def table(folder: Path) -> LeverTable:
    return load_table(folder)


def test_a_table_comes_back_as_it_was_written(folder: Path) -> None:
    rows = list(read_table(folder / TABLE))
    write_table(rows, folder / "again.csv")
    assert (folder / "again.csv").read_text() == (folder / TABLE).read_text()


def test_combinations_are_told_apart_by_what_they_come_to() -> None:
    native = {**SEED_SETTINGS, "step": "native"}
    assert key_of({**native, "fuse": "qkv"}, MACHINE) == key_of(native, MACHINE)
    assert key_of({**native, "threads": "2"}, MACHINE) == key_of(native, MACHINE)
    assert key_of({**native, "threads": "1"}, MACHINE) != key_of(native, MACHINE)


def test_the_best_is_the_fastest_that_passes_the_gate(table: LeverTable) -> None:
    best, tps = table.best("short", challenge_on("short").tier)
    assert (best["weights"], best["head"], best["step"]) == ("int4-g32", "int4-g32", "native")
    assert tps < max(speeds["short"] for speeds in table.tps.values())


def test_what_was_not_measured_is_not_possible(table: LeverTable) -> None:
    eager_alone = {**SEED_SETTINGS, "threads": "1"}
    assert table.refusal(SHAPE, eager_alone, MACHINE) == "not in the table"
    assert table.refusal(SHAPE, SEED_SETTINGS, MACHINE) is None
    original = fit.refusal
    with in_table(table):
        assert SHIPPED.refusal(SHAPE, eager_alone, MACHINE)
    assert fit.refusal is original


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["random", "best of 4", "greedy"])
def test_simple_searches_find_the_way_in_the_real_loop(table: LeverTable, name: str) -> None:
    values = levers_that_vary(table)
    planner = {
        "random": RandomSearch(values, 1),
        "best of 4": RandomSearch(values, 1, best_of=4),
        "greedy": Greedy(),
    }[name]
    with in_table(table), open_memory() as memory:
        curve = search(table, "short", planner, memory, seed=1, num=8)
        (run,) = memory.runs()
        tried = [memory.variant(e.variant).settings for e in memory.experiments(run=run.id)]
    assert run.state is RunState.FINISHED
    assert len(curve) == 8
    assert curve == sorted(curve)  # noise of 1 % fools nobody here
    assert curve[-1] > 1.5 * table.speed(SEED_SETTINGS, "short")
    assert all(table.key(settings) in table.tps for settings in tried)


@pytest.mark.usefixtures("home")
def test_memory_brings_no_champion_to_another_workload(table: LeverTable) -> None:
    with in_table(table), open_memory() as memory:
        search(table, "long", OfflinePlanner(), memory, seed=1, num=6)
        search(table, "short", OfflinePlanner(), memory, seed=2, num=1)
        later = next(run for run in memory.runs() if run.challenge == "table-short")
        begun = memory.variant(memory.hypotheses(later.id)[0].parent)
        assert memory.experiments(run=later.id)[0].variant == begun.id
        assert ledger(memory.database)
    assert begun.parent is None
    assert begun.settings == SEED_SETTINGS


def test_the_same_seed_is_the_same_race(folder: Path) -> None:
    assert race(FORGETS, 3, 4, 0, folder) == race(FORGETS, 3, 4, 0, folder)


def test_counts_and_curves_say_so_where_the_goal_was_missed() -> None:
    assert needed([1.0, 5.0, 9.6], 9.5, 10) == 3
    assert needed([1.0, 5.0], 9.5, 10) == 11
    assert shares([2.0, 4.0], 1.0, 8.0, 4).tolist() == [0.125, 0.25, 0.5, 0.5, 0.5]


def test_figures_compare_by_seed() -> None:
    fast, slow = np.arange(10, 20), np.arange(14, 24)
    told = figures({REMEMBERS: fast, FORGETS: slow, "random": 4 * slow}, 10, 80, 24)
    assert told["ratio_vs_random"] == pytest.approx(14.5 / 74, abs=1e-4)
    assert isinstance(told["p_memory"], float)
    assert told["p_memory"] < 0.01
    equal = figures({REMEMBERS: fast, FORGETS: fast, "random": slow}, 10, 80, 24)
    assert equal["p_memory"] == 1.0
