"""Two labs join what they know; doing it twice changes nothing."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from memories import Teller, make_run

from slipstream.evaluation.acceptance import Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory.board import Board
from slipstream.memory.exchange import export_memory, import_memory, lines
from slipstream.memory.leaderboard import leaderboard
from slipstream.memory.ledger import ledger
from slipstream.memory.logs import LogStore
from slipstream.memory.records import RunState, Variant
from slipstream.memory.search import search
from slipstream.memory.store import open_memory
from slipstream.memory.upkeep import Keep, Pruned, check, prune


class Lab:
    """A memory with what lies beside it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.memory = open_memory(url)
        self.variants, self.logs = VariantStore(folder / "variants"), LogStore(folder / "logs")
        self.runs = folder / "runs"

    def export(self) -> str:
        file = io.StringIO()
        export_memory(self.memory, self.variants, self.logs, file)
        return file.getvalue()

    def take(self, text: str) -> int:
        found = import_memory(self.memory, self.variants, self.logs, text.splitlines())
        return sum(found.rows.values()) + found.trees + found.logs

    def faults(self) -> list[object]:
        return list(check(self.memory, self.variants, self.logs, self.runs))


@pytest.fixture
def lab(url: str, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(url, tmp_path / "one")
    yield made
    made.memory.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(f"sqlite:///{tmp_path}/other.db", tmp_path / "other")
    yield made
    made.memory.close()


def fill(lab: Lab, run: str) -> str:
    teller = Teller(lab.memory, make_run(run))
    teller.start("seed", 1.5)
    name = teller.tell(f"{run}a", Verdict.KEPT, 0.2)
    lab.memory.add_pair(name, Pair(Stage.TEST, 0, ("p", "q"), "ABBA", 10.0, 9.0, ((1,), (2,))))
    teller.tell(f"{run}b", Verdict.REJECTED, -0.1, rival=f"{run}a", value="int4-g64")
    Board(lab.memory.database, run).post(f"hello from {run} @ada")
    tree = seed_tree({**SEED_SETTINGS, "threads": run[1:]})
    lab.variants.add(tree)
    lab.memory.add_variant(Variant(tree.id, "seed", tree.engine_id, tree.settings, run, 9.0))
    lab.logs.add(f"log of {run}")
    return name


def test_labs_join_and_derive_the_same(lab: Lab, other: Lab) -> None:
    name = fill(lab, "r1")
    fill(other, "r2")
    assert lab.take(other.export()) > 0
    assert other.take(lab.export()) > 0
    assert lab.take(other.export()) == other.take(lab.export()) == 0  # again changes nothing
    assert leaderboard(lab.memory, "c", "m") == leaderboard(other.memory, "c", "m")
    assert ledger(lab.memory.database) == ledger(other.memory.database)
    assert {run.id for run in other.memory.runs()} == {"r1", "r2"}
    assert other.memory.evidence(name) == lab.memory.evidence(name)
    assert len(search(other.memory.database, "int4")) == 2
    assert len(Board(other.memory.database, "ada").inbox()) == 2
    assert lab.variants.names() == other.variants.names() != []
    assert lab.faults() == other.faults() == []
    ours, theirs = ({*one.export().splitlines()} for one in (lab, other))
    assert all('"id":"seed"' in line for line in ours ^ theirs)  # each met it in a run of its own


def test_a_run_that_got_further_is_brought_up_to_date(lab: Lab, other: Lab) -> None:
    fill(lab, "r1")
    other.take(lab.export())
    lab.memory.update_run("r1", state=RunState.FINISHED, spent_s=99.0)
    other.take(lab.export())
    assert other.memory.run("r1").state is RunState.FINISHED
    lab.take(other.export())
    assert lab.memory.run("r1").spent_s == 99.0


def damaged(text: str, how: str) -> str:
    rows = text.splitlines()
    match how:
        case "no export":
            return "hello\n"
        case "not JSON":
            return "\n".join([*rows[:4], rows[4][:20]])
        case "newer":
            return json.dumps({"format": "slipstream-memory", "schema": "9999"})
        case "row":
            return "\n".join([rows[0], '{"table": "runs", "row": {"id": "r9"}}'])
        case "type":
            return text.replace('"tps":10.0', '"tps":"fast"')
        case "table":
            return "\n".join([*rows, '{"table": "sqlite_master", "row": {}}'])
        case "tree":
            return text.replace("levers.json", "lovers.json")
    files = {"../../escaped": "eA=="}
    return "\n".join([rows[0], json.dumps({"tree": "0" * 12, "files": files})])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no export", "line 1 is not JSON"),
        ("not JSON", "line 5 is not JSON"),
        ("newer", "schema is 9999.*upgrade"),
        ("row", "a row of runs is damaged"),
        ("type", "a row of measurements is damaged: tps is 'fast'"),
        ("table", "table 'sqlite_master': not one of"),
        ("tree", "tree .* is damaged"),
        ("path", r"damaged: path '../../escaped'"),
    ],
)
def test_damaged_exports_change_nothing(
    lab: Lab, other: Lab, how: str, message: str, tmp_path: Path
) -> None:
    fill(other, "r2")
    with pytest.raises(SlipstreamError, match=message):
        lab.take(damaged(other.export(), how))
    assert lab.memory.runs() == []
    assert not (tmp_path / "escaped").exists()


def test_merging_reads_the_other_memory_directly(lab: Lab, other: Lab) -> None:
    fill(other, "r2")
    import_memory(
        lab.memory, lab.variants, lab.logs, lines(other.memory, other.variants, other.logs)
    )
    assert leaderboard(lab.memory, "c", "m") == leaderboard(other.memory, "c", "m")


# Upkeep of what lies beside the database


def real_variants(lab: Lab) -> dict[str, str]:
    """Champion ← parent ← seed, one rejected, one of a run that goes on, one claimed."""
    teller = Teller(lab.memory, make_run(state=RunState.FINISHED))
    going = Teller(lab.memory, make_run("r2"))
    names = {}
    for number, name in enumerate(("parent", "champion", "rejected", "going", "claimed")):
        tree = seed_tree({**SEED_SETTINGS, "threads": str(number)})
        lab.variants.add(tree)
        names[name] = tree.id
    teller.start("seed", 1.0)
    teller.tell(names["parent"], Verdict.KEPT, 0.1, value="1")
    teller.tell(names["champion"], Verdict.KEPT, 0.1, rival=names["parent"], value="2")
    teller.tell(names["rejected"], Verdict.REJECTED, -0.1, value="3")
    teller.tell(names["claimed"], Verdict.REJECTED, -0.1, value="4")
    going.tell(names["going"], Verdict.REJECTED, -0.1, value="5")
    lab.memory.claims.acquire(f"measure|c|m|{names['claimed']}", "r9")
    return names


def test_prune_keeps_champions_their_ancestors_and_what_is_alive(lab: Lab) -> None:
    names = real_variants(lab)
    stray = lab.variants.add(seed_tree({**SEED_SETTINGS, "threads": "16"})).name
    used, unused = lab.logs.add("used"), lab.logs.add("unused")
    lab.memory.database.write(lambda c: c.exec_driver_sql(f"UPDATE verdicts SET log = '{used}'"))
    # A process that is at work stores first and records then.
    assert prune(lab.memory, lab.variants, lab.logs, Keep.ALL) == Pruned()
    for path in (lab.variants.path(stray), lab.logs.path(unused), lab.logs.path(used)):
        os.utime(path, (1.0, 1.0))
    would = prune(lab.memory, lab.variants, lab.logs, Keep.ALL, dry_run=True)
    assert (would.trees, would.logs) == ([stray], [unused])
    assert len(lab.variants.names()) == 6
    done = prune(lab.memory, lab.variants, lab.logs, Keep.CHAMPIONS)
    assert sorted(done.trees) == sorted([stray, names["rejected"]])
    assert done.freed_bytes > 10_000
    kept = {names[name] for name in ("parent", "champion", "going", "claimed")}
    assert set(lab.variants.names()) == kept
    assert list(lab.logs.names()) == [used]
    lab.runs.joinpath("r1").mkdir(parents=True)
    assert lab.faults() == [f for f in lab.faults() if f.what == "variant seed"]  # type: ignore[attr-defined]
    assert len(lab.memory.findings()) == 5  # what was learned stays
    assert prune(lab.memory, lab.variants, lab.logs, Keep.CHAMPIONS).trees == []


def test_check_verifies_hashes(lab: Lab) -> None:
    names = real_variants(lab)
    lab.runs.joinpath("r1").mkdir(parents=True)
    log = lab.logs.add("a log")
    path = lab.variants.path(names["champion"]) / "engine" / "engine.py"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"#")
    lab.logs.path(log).write_text("another log")
    found = {fault.what for fault in lab.faults()}  # type: ignore[attr-defined]
    assert found == {"variant seed", f"variant {names['champion']}", f"log {log}"}
