"""Memory keeps what it acknowledged, once, and hands out values that outlive it."""

import dataclasses
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from memories import make_run
from sqlalchemy import inspect, text

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.statistics import Estimate
from slipstream.memory import schema
from slipstream.memory.costs import Cost, Costs
from slipstream.memory.database import Database
from slipstream.memory.records import Experiment, Finding, Hypothesis, RunState, Variant
from slipstream.memory.store import Memory, open_memory

# What a process needs to import this file.
PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
RUN = make_run()
SEED = Variant("aaa", None, "e", {"cache": "growing"}, "r1", 1.0)
CHILD = Variant("abb", "aaa", "e", {"cache": "static"}, "r1", 2.0)
HYPOTHESIS = Hypothesis(
    "r1-001", "r1", 0, "p", "aaa", "cache", {"cache": "static"}, "because", 0.1, 2.0
)
EXPERIMENT = Experiment("r1-001", "r1", "r1-001", "abb", "aaa", 3.0)
KEPT = Judgement(Verdict.KEPT, Cause.GAIN, "faster", Estimate(0.1, 0.01, 12), None, 55.0)
FINDING = Finding("r1-001", "cache", "static", 0.1, "fewer copies", "never", False, 4.0)


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    store = open_memory(url)
    store.add_run(RUN)
    store.add_variant(SEED)
    store.add_variant(CHILD)
    store.add_hypotheses([HYPOTHESIS])
    store.add_experiment(EXPERIMENT)
    yield store
    store.close()


def test_everything_comes_back_as_it_went_in(memory: Memory) -> None:
    assert memory.run("r1") == RUN
    assert memory.variants() == [SEED, CHILD]
    assert memory.hypotheses("r1") == [HYPOTHESIS]
    assert memory.hypotheses("r2") == []
    assert memory.experiment("r1-001") == EXPERIMENT
    memory.record("r1-001", KEPT, FINDING, 9.0)
    found = memory.experiment("r1-001")
    assert found is not None
    assert (found.verdict, found.cause, found.tps) == (Verdict.KEPT, Cause.GAIN, 55.0)
    assert found.estimate == Estimate(0.1, 0.01, 12)
    assert memory.findings() == [FINDING]
    assert memory.run("r1").spent_s == 9.0


def test_values_outlive_the_database(memory: Memory) -> None:
    run = memory.run("r1")
    memory.close()
    assert run.rules["tier"] == "near-lossless"
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.state = RunState.FINISHED  # type: ignore[misc]


def test_changing_an_unknown_run_is_an_error(memory: Memory) -> None:
    with pytest.raises(SlipstreamError, match="unknown run 'r9'"):
        memory.update_run("r9", delta=0.1)


def test_the_first_record_of_a_key_stays(memory: Memory) -> None:
    pair = Pair(Stage.SCREEN, 0, ("p", "q"), "ABBA", 10.0, 9.0)
    memory.add_pair("r1-001", pair)
    memory.add_pair("r1-001", dataclasses.replace(pair, tps=99.0))
    score = DocumentScore("d", 5, 1.0, 1.0, 0.0, 5)
    memory.add_score("r1-001", Split.PUBLIC, score)
    memory.add_score("r1-001", Split.PUBLIC, dataclasses.replace(score, nll=9.0))
    memory.record("r1-001", KEPT, FINDING, 9.0)
    memory.record("r1-001", Judgement(Verdict.FAILED, Cause.ENGINE, "no"), FINDING, 5.0)
    memory.add_run(dataclasses.replace(RUN, seed=2))
    evidence = memory.evidence("r1-001")
    assert list(evidence.pairs) == [pair]
    assert list(evidence.scores[Split.PUBLIC]) == [score]
    assert memory.run("r1").seed == 1
    assert memory.run("r1").spent_s == 9.0  # time never runs backwards
    found = memory.experiment("r1-001")
    assert found is not None
    assert found.verdict is Verdict.KEPT


def test_verdict_and_finding_are_one_transaction(memory: Memory) -> None:
    broken = dataclasses.replace(FINDING, mechanism=None)  # type: ignore[arg-type]
    with pytest.raises(SlipstreamError, match=r"(?i)not.null"):
        memory.record("r1-001", KEPT, broken, 9.0)
    found = memory.experiment("r1-001")
    assert found is not None
    assert found.verdict is None


def test_beginning_of_a_name_is_enough_if_it_is_unique(memory: Memory) -> None:
    assert memory.variant("ab") == CHILD
    with pytest.raises(SlipstreamError, match="several variants begin with 'a'"):
        memory.variant("a")
    with pytest.raises(SlipstreamError, match="unknown variant 'zz'"):
        memory.variant("zz")
    with pytest.raises(SlipstreamError, match="unknown variant '%'"):
        memory.variant("%")


def test_unknown_run_names_the_latest(memory: Memory) -> None:
    with pytest.raises(SlipstreamError, match="unknown run 'r9'; the latest runs are: r1"):
        memory.run("r9")


def test_killed_writer_loses_nothing_acknowledged(url: str) -> None:
    """A process writes pairs and says each one that is down; it is killed in the middle."""
    code = f"""
import sys; sys.path[:0] = {PATHS}
from test_store import *
memory = open_memory({url!r})
memory.add_run(RUN); memory.add_variant(CHILD); memory.add_hypotheses([HYPOTHESIS])
memory.add_experiment(EXPERIMENT)
for index in range(100_000):
    memory.add_pair("r1-001", Pair(Stage.TEST, index, ("p", "q"), "ABBA", 10.0, 9.0))
    print(index, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(40):
        last = process.stdout.readline()
    process.kill()
    acknowledged = int(([last, *process.stdout.read().split("\n")[:-1]])[-1])
    with open_memory(url) as memory:
        indices = [pair.index for pair in memory.evidence("r1-001").pairs]
    assert indices == list(range(len(indices)))
    assert len(indices) > acknowledged >= 39


def test_many_processes_write_at_once(url: str) -> None:
    code = f"""
import sys; sys.path[:0] = {PATHS}
from test_store import *
memory = open_memory({url!r})
memory.add_run(RUN); memory.add_variant(CHILD); memory.add_hypotheses([HYPOTHESIS])
memory.add_experiment(EXPERIMENT)
for index in range(50):
    memory.add_pair("r1-001", Pair(Stage.TEST, index, (sys.argv[1],), "ABBA", 10.0, 9.0))
    own = index + 50 * int(sys.argv[1])
    memory.add_pair("r1-001", Pair(Stage.CONFIRM, own, ("p", "q"), "ABBA", 1.0, 9.0))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    with open_memory(url) as memory:
        pairs = memory.evidence("r1-001").pairs
    assert sorted(p.index for p in pairs if p.stage is Stage.TEST) == list(range(50))
    assert sorted(p.index for p in pairs if p.stage is Stage.CONFIRM) == list(range(200))


def test_schema_is_the_tables(url: str) -> None:
    """What the migrations make is what the code expects."""
    from sqlmodel import SQLModel

    memory = open_memory(url)
    inspector = inspect(memory.database.engine)
    for name, table in SQLModel.metadata.tables.items():
        columns = {c["name"]: c["nullable"] for c in inspector.get_columns(name)}
        columns.pop("full_text", None)  # Postgres' full text
        assert columns == {c.name: c.nullable for c in table.columns}, name
        made = {index["name"] for index in inspector.get_indexes(name)}
        assert {index.name for index in table.indexes} <= made, name
    if url.startswith("sqlite"):
        with memory.database.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    memory.close()


def test_newer_schema_is_refused(url: str) -> None:
    with open_memory(url) as memory:
        newer = "UPDATE alembic_version SET version_num = '9999'"
        memory.database.write(lambda connection: connection.execute(text(newer)))
    with pytest.raises(SlipstreamError, match=f"schema is 9999.*up to {schema.HEAD}; upgrade"):
        open_memory(url)


def test_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    open_memory(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(SlipstreamError, match=f"schema is 9999.*up to {schema.HEAD}; upgrade"):
        open_memory(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////no/such/folder/m.db", "unable to open database file; check the path"),
        ("mysql://x", "write sqlite:///FILE or postgresql"),
    ],
)
def test_what_cannot_be_opened_is_one_line(url: str, message: str) -> None:
    with pytest.raises(SlipstreamError, match=message) as caught:
        open_memory(url)
    assert "\n" not in str(caught.value)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.db").write_text("a letter, not a database" * 100)
    with pytest.raises(SlipstreamError, match="not a database; it is some other file"):
        open_memory(f"sqlite:///{tmp_path}/m.db")


@pytest.mark.timed
def test_opening_again_is_quick(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/m.db"
    open_memory(url).close()
    begun = time.perf_counter()
    open_memory(url).close()
    assert time.perf_counter() - begun < 0.5  # migrating takes longer: alembic isn't even imported


def test_a_budget_is_one_for_all_who_spend_from_it(memory: Memory, url: str) -> None:
    """Jobs and calls of models, from several processes: never more is begun than there is."""

    def spend(number: int) -> bool:
        database = Database(url)
        try:
            cost = Cost(f"c{number}", "r1", None, "planner", "m", usd=0.3)
            return Costs(database).begin_within(cost, 1.0, keep=0.05) is None
        finally:
            database.close()

    with ThreadPoolExecutor(8) as threads:
        begun = list(threads.map(spend, range(8)))
    assert begun.count(True) == 3
    costs = Costs(memory.database)
    assert costs.usd("r1") == pytest.approx(0.9)
    again = Cost("c9", "r1", None, "planner", "m", usd=0.2)
    assert costs.begin_within(again, 1.0) == pytest.approx(0.1)
    assert costs.begin_within(again, None) is None
