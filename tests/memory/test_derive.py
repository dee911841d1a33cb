"""What is derived says what the experiments say, however they came in."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from memories import Teller, make_run
from sqlalchemy import text

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.kernels.variants import VariantStore
from slipstream.memory import derive, upkeep
from slipstream.memory.leaderboard import leaderboard, pulse, speedups
from slipstream.memory.ledger import LedgerEntry, calibration, corrections, ledger
from slipstream.memory.logs import LogStore
from slipstream.memory.store import Memory, open_memory


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    with open_memory(url) as opened:
        yield opened


def faults(memory: Memory, tmp_path: Path) -> list[upkeep.Fault]:
    stores = VariantStore(tmp_path / "variants"), LogStore(tmp_path / "logs")
    return upkeep.check(memory, *stores, tmp_path / "runs")


def entry(memory: Memory, value: str) -> LedgerEntry:
    (found,) = [e for e in ledger(memory.database) if e.value == value]
    return found


def test_ledger_tells_each_lever_from_its_experiments(memory: Memory) -> None:
    teller = Teller(memory)
    first = teller.tell("a", Verdict.KEPT, 0.2, value="int8", mechanism="half the bytes")
    second = teller.tell("b", Verdict.KEPT, 0.3, rival="a", value="int8", mechanism="again")
    teller.tell("c", Verdict.REJECTED, -0.1, value="int4-g64", cause=Cause.QUALITY)
    teller.tell("d", Verdict.REJECTED, -0.1, value="int4-g128", tps=45.0)
    teller.tell("e", Verdict.INCONCLUSIVE, 0.01, value="int4-g256")
    teller.tell("f", Verdict.FAILED, value="int4-g32")
    found = entry(memory, "int8")
    assert (found.status, found.trials, found.kept) == ("works", 2, 2)
    assert found.best is not None
    assert found.best.ratio == pytest.approx(1.3)
    low, high = found.best.interval()
    assert low < 1.3 < high
    assert (found.best_experiment, found.evidence) == (second, (first, second))
    assert (found.mechanism, found.reopen) == ("again", "later")
    assert (found.family, found.machine) == ("llama", "m")
    assert entry(memory, "int4-g64").status == "costs quality"
    assert entry(memory, "int4-g128").status == "no gain"
    assert entry(memory, "int4-g128").refuted_tps == pytest.approx(50.0)  # 45 is 0.9 of it
    assert entry(memory, "int4-g256").status == "open"
    assert entry(memory, "int4-g32").status == "fails"
    assert [e.value for e in ledger(memory.database, lever="cache")] == []


def test_a_later_finding_contests_an_earlier_one_and_both_stay(memory: Memory) -> None:
    teller = Teller(memory)
    dead = teller.tell("a", Verdict.REJECTED, -0.1, lever="draft", value="lookup-4")
    assert entry(memory, "lookup-4").status == "no gain"
    alive = teller.tell("b", Verdict.KEPT, 0.8, lever="draft", value="lookup-4")
    found = entry(memory, "lookup-4")
    assert (found.status, found.evidence) == ("contested", (dead, alive))
    assert found.best is not None
    assert found.best.ratio == pytest.approx(1.8)
    assert len(memory.findings()) == 2


def test_verdict_that_was_copied_is_no_new_trial(memory: Memory) -> None:
    teller = Teller(memory)
    teller.tell("a", Verdict.KEPT, 0.2)
    teller.tell("a", Verdict.KEPT, None)  # the same tree again: judged without measuring
    assert entry(memory, "int8").trials == 1


def test_evidence_is_the_latest(memory: Memory) -> None:
    teller = Teller(memory)
    told = [teller.tell(f"v{number}", Verdict.KEPT, 0.1) for number in range(12)]
    assert entry(memory, "int8").evidence == tuple(told[-10:])


def test_other_families_and_machines_have_ledgers_of_their_own(memory: Memory) -> None:
    Teller(memory).tell("a", Verdict.KEPT, 0.2)
    Teller(memory, make_run("r2", family="gemma3_text")).tell("a", Verdict.REJECTED, -0.2)
    Teller(memory, make_run("r3", machine="n")).tell("a", Verdict.FAILED)
    found = {(e.family, e.machine): e.status for e in ledger(memory.database)}
    wanted = {("llama", "m"): "works", ("gemma3_text", "m"): "no gain", ("llama", "n"): "fails"}
    assert found == wanted
    assert len(ledger(memory.database, family="llama", machine="n")) == 1


def test_predictions_are_compared_with_what_was_measured(memory: Memory) -> None:
    teller = Teller(memory)
    for number in range(20):  # twice as much promised as came
        teller.tell(f"v{number}", Verdict.KEPT, 0.05, predicted=0.1025, lever="weights")
        teller.tell(f"w{number}", Verdict.REJECTED, -0.02, predicted=0.05, lever="norm")
    teller.tell("x", Verdict.FAILED, predicted=0.5, lever="glue")
    found = corrections(memory.database, "planner", "llama", "m")
    assert set(found) == {"weights", "norm"}  # what never ran says nothing
    assert found["weights"].count == 20
    assert found["weights"].factor == pytest.approx(0.565, abs=0.01)
    assert found["norm"].factor == 0.0
    assert corrections(memory.database, "somebody else", "llama", "m") == {}
    told = {c.lever: c for c in calibration(memory.database)}
    assert told["weights"].error == pytest.approx(math.log(1.1025) - math.log(1.05))


def test_novelty_fades_and_lineages_are_told_apart(memory: Memory) -> None:
    teller = Teller(memory)
    teller.start("seed", 1.0)
    teller.tell("a", Verdict.KEPT, 0.2, lever="weights", value="int8")
    teller.tell("b", Verdict.KEPT, 0.1, rival="a", lever="norm", value="layer-norm")
    teller.tell("c", Verdict.REJECTED, -0.1, rival="b", parent="seed", lever="norm", value="x")
    teller.tell("d", Verdict.REJECTED, -0.2, rival="b", parent="c", lever="norm", value="x")
    rows = {s.variant: s for s in leaderboard(memory, "c", "m")}
    assert {name: row.lineage for name, row in rows.items()} == {
        "seed": "seed",
        "a": "a",
        "b": "a",
        "c": "c",
        "d": "c",
    }
    assert (rows["a"].novelty, rows["c"].novelty, rows["d"].novelty) == (1.0, 1.0, 0.5)
    found = pulse(memory, "c", "m")
    assert found.stagnation == 2
    assert found.monoculture == ""
    assert {(line.root, line.best, line.trials) for line in found.lineages} == {
        ("a", "b", 2),
        ("c", "c", 2),
        ("seed", "seed", 1),
    }


def test_monoculture_is_when_the_top_ten_share_an_ancestor(memory: Memory) -> None:
    teller = Teller(memory)
    teller.start("seed", 1.0)
    parent = "seed"
    for number in range(10):
        teller.tell(f"v{number}", Verdict.KEPT, 0.1, rival=parent, value=str(number))
        parent = f"v{number}"
        assert pulse(memory, "c", "m").monoculture == ("v0" if number == 9 else "")
    teller.tell("w", Verdict.KEPT, 0.5, rival=parent, parent="seed", value="w")
    assert pulse(memory, "c", "m").monoculture == ""


def test_what_is_added_bit_by_bit_is_what_is_derived_at_once(
    memory: Memory, tmp_path: Path
) -> None:
    """Random histories with chains, re-measured champions, cycles and several places."""
    rng = random.Random(7)
    tellers = [Teller(memory, make_run(f"r{n}", machine=rng.choice("mn"))) for n in range(3)]
    for teller in tellers:
        teller.start("seed", rng.uniform(0.8, 2))
    known = ["seed"]
    for number in range(60):
        teller = rng.choice(tellers)
        variant = f"v{number}" if rng.random() < 0.6 else rng.choice(known)
        verdict = rng.choice(list(Verdict))
        measured = verdict not in (Verdict.FAILED, Verdict.INVALID) and rng.random() < 0.9
        gain = rng.uniform(-0.3, 0.5) if measured else None
        values = ["int8", "int4", f"x{number}"]
        teller.tell(
            variant, verdict, gain, rival=rng.choice(known), value=rng.choice(values),
            agent=rng.choice("pq"), lever=rng.choice(["weights", "cache"]),
        )  # fmt: skip
        known.append(variant)
        if rng.random() < 0.2:
            teller.start(rng.choice(known), rng.uniform(0.5, 4), pairs=rng.choice([6, 12]))
    before = (leaderboard(memory, "c", "m"), ledger(memory.database), speedups(memory, "c", "m"))
    assert [f for f in faults(memory, tmp_path) if f.what.split()[0] in upkeep_tables()] == []
    upkeep.repair(memory)
    after = (leaderboard(memory, "c", "m"), ledger(memory.database), speedups(memory, "c", "m"))
    assert {s.variant for s in before[0]} == {s.variant for s in after[0]}
    assert before[1:] == after[1:]
    assert len(before[0]) > 10


def upkeep_tables() -> set[str]:
    return {table.name for table in derive.DERIVED}


def test_check_finds_what_was_tampered_with(memory: Memory, tmp_path: Path) -> None:
    teller = Teller(memory)
    teller.tell("a", Verdict.KEPT, 0.2)
    assert faults(memory, tmp_path) == []
    memory.database.write(lambda c: c.execute(text("UPDATE ledger SET kept = 7")))
    memory.database.write(lambda c: c.execute(text("DELETE FROM standings")))
    assert {fault.what for fault in faults(memory, tmp_path)} == {
        "ledger weights/int8/llama/m",
        "standings c/m/a",
    }
    upkeep.repair(memory)
    assert faults(memory, tmp_path) == []
