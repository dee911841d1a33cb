"""Is what is remembered whole? And away with what nothing points to.

`check` verifies every hash and reference, and derives all that is derived once more. `prune`
removes trees and logs from disk; rows stay, so what was learned is never lost.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text

from slipstream.evaluation.errors import SlipstreamError
from slipstream.kernels.variants import VariantStore

from . import claims, derive
from .logs import LogStore
from .queries import TABLES
from .records import RunState
from .store import Memory

_VARIANTS, _HYPOTHESES = TABLES["variants"], TABLES["hypotheses"]
_EXPERIMENTS, _VERDICTS = TABLES["experiments"], TABLES["verdicts"]
_STANDINGS, _FINDINGS = TABLES["standings"], TABLES["findings"]

_MAY_BE_IN_USE_S = 3600.0


@dataclass(frozen=True)
class Fault:
    """Something that isn't as it should be.

    Attributes:
        what: the thing, by its name.
        found: what is wrong with it.
        advice: what to do.
    """

    what: str
    found: str
    advice: str


class Keep(StrEnum):
    """What a tree has to be, to stay when pruning."""

    ALL = "all"  # a recorded variant
    KEPT = "kept"  # one that was kept, or an ancestor of one
    CHAMPIONS = "champions"  # a champion, or an ancestor of one


@dataclass
class Pruned:
    """What was removed, or would be."""

    trees: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    freed_bytes: int = 0


def check(memory: Memory, variants: VariantStore, logs: LogStore, runs: Path) -> list[Fault]:
    """Return everything that is wrong with a memory and the files beside it.

    Args:
        runs: the folder of this machine's runs; trees of other machines' runs lie elsewhere.
    """

    def rows(connection: Connection) -> list[Fault]:
        derive.lock(connection)  # no verdict may come in between two looks
        looks = (_database_faults, _reference_faults, _derived_faults)
        return [fault for look in looks for fault in look(connection)]

    faults = memory.database.write(rows)
    return [*faults, *_tree_faults(memory, variants, runs), *_log_faults(memory, logs, runs)]


def prune(
    memory: Memory, variants: VariantStore, logs: LogStore, keep: Keep, *, dry_run: bool = False
) -> Pruned:
    """Remove trees and logs that nothing points to, and what a killed process left behind.

    What a run that isn't finished has made, what is claimed now, and whatever is so new that a
    process may be about to record it, stays always.
    """
    pruned = Pruned()
    known = {variant.id for variant in memory.variants()}
    wanted = _wanted_variants(memory, keep)
    for name in variants.names():
        in_the_making = name not in known and _is_new(variants.root / name)
        if name not in wanted and not in_the_making:
            pruned.trees.append(name)
            pruned.freed_bytes += _size(variants.root / name)
            if not dry_run:
                variants.remove(name)
    query = select(_VERDICTS.c.log).where(_VERDICTS.c.log.is_not(None))
    pointed_at = set(memory.database.read(lambda connection: connection.scalars(query).all()))
    for name in logs.names():
        if name not in pointed_at and not _is_new(logs.path(name)):
            pruned.logs.append(name)
            pruned.freed_bytes += _size(logs.path(name))
            if not dry_run:
                logs.path(name).unlink()
    for root in (variants.root, logs.root):
        for path in [*root.glob(".new-*"), *root.glob(".old-*")]:
            if _is_new(path):
                continue
            pruned.leftovers.append(path.name)
            pruned.freed_bytes += _size(path)
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return pruned


def _wanted_variants(memory: Memory, keep: Keep) -> set[str]:
    known = {variant.id: variant for variant in memory.variants()}
    standing = select(_STANDINGS.c.variant, _STANDINGS.c.kept, _STANDINGS.c.rank).add_columns(
        _STANDINGS.c.challenge, _STANDINGS.c.machine
    )
    standings = memory.database.read(lambda connection: connection.execute(standing).all())
    if keep is Keep.ALL:
        roots = set(known)
    elif keep is Keep.KEPT:
        roots = {row.variant for row in standings if row.kept}
    else:
        best: dict[tuple[str, str], Any] = {}
        for row in standings:
            place = (row.challenge, row.machine)
            if row.kept and (place not in best or row.rank > best[place].rank):
                best[place] = row
        roots = {row.variant for row in best.values()}
    unfinished = {run.id for run in memory.runs() if run.state is not RunState.FINISHED}
    roots |= {variant.id for variant in known.values() if variant.run in unfinished}
    roots |= set(claims.names(memory.claims.live("measure|")))
    wanted: set[str] = set()
    for name in roots:
        while name is not None and name in known and name not in wanted:
            wanted.add(name)
            name = known[name].parent or ""
    return wanted


def _database_faults(connection: Connection) -> Iterator[Fault]:
    if connection.dialect.name != "sqlite":
        return
    found = connection.execute(text("PRAGMA integrity_check(5)")).scalars().all()
    for line in found:
        if line != "ok":
            yield Fault("database", line, "restore a copy, or export what is readable")
    for row in connection.execute(text("PRAGMA foreign_key_check")).all():
        yield Fault(f"{row[0]} row {row[1]}", f"points to no row of {row[2]}", "import it")
    indexed = connection.scalar(text("SELECT count(*) FROM findings_text")) or 0
    findings = connection.scalar(select(func.count()).select_from(_FINDINGS)) or 0
    if indexed != findings:
        yield Fault("full text", f"{indexed} of {findings} findings", "`memory check --repair`")


def _reference_faults(connection: Connection) -> Iterator[Fault]:
    known = set(connection.scalars(select(_VARIANTS.c.id)).all())
    for row in connection.execute(select(_VARIANTS.c.id, _VARIANTS.c.parent)).all():
        if row.parent is not None and row.parent not in known:
            yield Fault(f"variant {row.id}", f"its parent {row.parent} is unknown", "import it")
    for row in connection.execute(select(_HYPOTHESES.c.id, _HYPOTHESES.c.parent)).all():
        if row.parent not in known:
            yield Fault(f"hypothesis {row.id}", f"its parent {row.parent} is unknown", "import it")
    lost = (
        select(_VERDICTS.c.experiment)
        .join(_EXPERIMENTS, _EXPERIMENTS.c.id == _VERDICTS.c.experiment)
        .outerjoin(_FINDINGS, _FINDINGS.c.experiment == _VERDICTS.c.experiment)
        .where(_EXPERIMENTS.c.hypothesis.is_not(None), _FINDINGS.c.experiment.is_(None))
    )
    for name in connection.scalars(lost).all():
        yield Fault(f"experiment {name}", "judged, but nothing was learned", "report it")


def _derived_faults(connection: Connection) -> Iterator[Fault]:
    for name, expected in derive.derive(connection).items():
        table = TABLES[name]
        keys = [column.name for column in table.primary_key]
        wanted = {tuple(row[key] for key in keys): row for row in expected}
        found = {
            tuple(row[key] for key in keys): row
            for row in connection.execute(select(table)).mappings()
        }
        for key in wanted.keys() | found.keys():
            if not _same(wanted.get(key), found.get(key)):
                what = f"{name} {'/'.join(key)}"
                yield Fault(what, "isn't what experiments say", "`memory check --repair`")


def _same(wanted: Mapping[Any, Any] | None, found: Mapping[Any, Any] | None) -> bool:
    if wanted is None or found is None:
        return False
    return all(_equal(value, found[name]) for name, value in wanted.items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def _tree_faults(memory: Memory, variants: VariantStore, runs: Path) -> Iterator[Fault]:
    pruned, here = variants.pruned(), set(variants.names())
    for variant in memory.variants():
        what = f"variant {variant.id}"
        if variant.id in here:
            found = variants.read(variant.id).id
            if found != variant.id:
                yield Fault(what, f"its tree's content is {found}", "import it from a copy")
        elif variant.id not in pruned and (runs / variant.run).is_dir():
            yield Fault(what, f"its tree is not in {variants.root}", "import it from a copy")


def _log_faults(memory: Memory, logs: LogStore, runs: Path) -> Iterator[Fault]:
    query = select(_VERDICTS.c.log, _EXPERIMENTS.c.run).where(_VERDICTS.c.log.is_not(None))
    query = query.join(_EXPERIMENTS, _EXPERIMENTS.c.id == _VERDICTS.c.experiment)
    here = set(logs.names())
    for row in memory.database.read(lambda connection: connection.execute(query).all()):
        if row.log not in here and (runs / row.run).is_dir():
            yield Fault(f"log {row.log}", f"is not in {logs.root}", "import it from a copy")
    for name in sorted(here):
        try:
            logs.read(name)
        except SlipstreamError as error:
            yield Fault(f"log {name}", str(error), "remove it, and import it from a copy")


def repair(memory: Memory) -> None:
    """Make all that is derived anew, the index of the full text included."""

    def work(connection: Connection) -> None:
        derive.rebuild(connection)
        if connection.dialect.name == "sqlite":
            connection.execute(text("DELETE FROM findings_text"))
            body = "lever || ' ' || value || ' ' || mechanism || ' ' || reopen"
            fill = f"INSERT INTO findings_text SELECT experiment, {body} FROM findings"
            connection.execute(text(fill))

    memory.database.write(work)


def _is_new(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < _MAY_BE_IN_USE_S


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
