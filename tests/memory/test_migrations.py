"""Memories of every released revision, with real data in them, come forward on both databases."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from postgres import Server
from sqlalchemy import Boolean, MetaData, Table, create_engine, inspect, select, text

from slipstream.kernels.variants import VariantStore
from slipstream.memory import schema, upkeep
from slipstream.memory.leaderboard import champion, leaderboard
from slipstream.memory.ledger import ledger
from slipstream.memory.logs import LogStore
from slipstream.memory.search import search
from slipstream.memory.store import open_memory

DATA = Path(__file__).parent / "data"
REVISIONS = sorted(path.stem.removeprefix("revision-") for path in DATA.glob("revision-*.db"))
_IN_ORDER = (  # references point backwards
    *("runs", "variants", "hypotheses", "experiments", "measurements", "audits", "scores"),
    *("verdicts", "findings", "posts", "mentions"),
)


def test_every_released_revision_is_here() -> None:
    versions = Path(schema.__file__).parent / "migrations" / "versions"
    released = sorted(path.name[:4] for path in versions.glob("0*.py"))
    assert released == [*REVISIONS, schema.HEAD]


def old_memory(revision: str, database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return the URL of a memory as an earlier slipstream left it."""
    copy = tmp_path / "old.db"
    shutil.copy(DATA / f"revision-{revision}.db", copy)
    if database == "sqlite":
        return f"sqlite:///{copy}"
    server: Server = request.getfixturevalue("postgres")
    url = server.new_database()
    target, source = create_engine(url), create_engine(f"sqlite:///{copy}")
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with target.connect() as there, source.connect() as here:
        config.attributes["connection"] = there
        command.upgrade(config, revision)
        there.commit()
        for name in (name for name in _IN_ORDER if inspect(here).has_table(name)):
            old = Table(name, MetaData(), autoload_with=here)
            new = Table(name, MetaData(), autoload_with=there)
            booleans = [c.name for c in new.columns if isinstance(c.type, Boolean)]
            for row in here.execute(select(old)).mappings():
                values = dict(row) | {column: bool(row[column]) for column in booleans}
                there.execute(new.insert().values(**values))
        there.commit()
    target.dispose()
    source.dispose()
    return url


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_data_comes_along(
    revision: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with sqlite3.connect(DATA / f"revision-{revision}.db") as old:
        assert old.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)
        query = "SELECT experiment, count(*) FROM measurements GROUP BY 1"
        counts = dict(old.execute(query).fetchall())
        (verdicts,) = old.execute("SELECT count(*) FROM verdicts").fetchone()
        (findings,) = old.execute("SELECT count(*) FROM findings").fetchone()
        (lever,) = old.execute("SELECT lever FROM findings LIMIT 1").fetchone()
        (challenge, machine) = old.execute("SELECT challenge, machine FROM runs").fetchone()
    url = old_memory(revision, database, tmp_path, request)
    with open_memory(url) as memory:
        for experiment, count in counts.items():
            assert len(memory.evidence(experiment).pairs) == count
        assert sum(e.verdict is not None for e in memory.experiments()) == verdicts
        pairs = [p for e in memory.experiments() for p in memory.evidence(e.id).pairs]
        assert all(pair.prompts and isinstance(pair.prompts[0], str) for pair in pairs)
        if revision == "0001":  # pairs had one prompt, and no tokens were kept
            assert {(len(p.prompts), p.void, p.tokens, p.attempt) for p in pairs} == {
                (1, "", (), 0)
            }
        assert memory.runs()[0].family == "llama"
        # What is derived is there, and so is the index of the findings.
        assert champion(memory, challenge, machine) is not None
        assert len(leaderboard(memory, challenge, machine)) > 1
        entries = ledger(memory.database)
        assert sum(entry.trials for entry in entries) == findings
        assert {entry.family for entry in entries} == {"llama"}
        assert search(memory.database, lever)
        hypothesis = memory.hypotheses(memory.runs()[0].id)[0]
        assert hypothesis.target.startswith(f"{hypothesis.lever.split('+')[0]}=")
        stores = VariantStore(tmp_path / "variants"), LogStore(tmp_path / "logs")
        assert upkeep.check(memory, *stores, tmp_path / "runs") == []
        version = "SELECT version_num FROM alembic_version"
        assert memory.database.read(lambda c: c.scalar(text(version))) == schema.HEAD
