"""Joining what two labs know: export to JSON lines, import, merge.

Names are stable (random run ids, hashes of content), and a row that is there already stays as it
is, so importing twice changes nothing. A line is one row, one tree of a variant or one log; the
first line says which schema wrote it. What is derived is made anew.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TextIO

from sqlalchemy import JSON, Boolean, Column, Connection, Float, Integer, Table, select

from slipstream.evaluation.errors import SlipstreamError
from slipstream.kernels.variants import Tree, VariantStore

from . import derive, queries
from .logs import LogStore
from .queries import TABLES
from .schema import HEAD
from .store import Memory

_FORMAT = "slipstream-memory"
# What is recorded, in an order in which every reference points backwards.
_RECORDED = (
    *("runs", "variants", "hypotheses", "experiments", "measurements", "audits", "scores"),
    *("verdicts", "findings", "posts", "mentions", "costs", "directions", "approvals"),
    *("observations", "rungs", "jobs"),
)
# Columns that exports of earlier schemas don't have, and what stands in them then.
_LATER: dict[tuple[str, str], Any] = {
    ("hypotheses", "risk"): "",
    ("hypotheses", "falsifier"): "",
    ("runs", "agents"): {},
    ("runs", "budget_usd"): None,
    ("runs", "parallel"): 1,
    ("runs", "executor"): "",
}
_BATCH = 500
# When a row was written.
_WRITTEN = {
    **{"runs": "started_at", "variants": "created_at", "hypotheses": "created_at"},
    **{"experiments": "started_at", "measurements": "measured_at", "audits": "audited_at"},
    **{"scores": "measured_at", "verdicts": "decided_at", "findings": "learned_at"},
    **{"posts": "posted_at", "mentions": "posted_at", "costs": "started_at"},
    **{"directions": "said_at", "approvals": "said_at", "observations": "seen_at"},
    **{"rungs": "climbed_at", "jobs": "submitted_at"},
}
_ORDER = {"posts": "posted_at", "mentions": "posted_at"}


@dataclass
class Joined:
    """What an import added.

    Attributes:
        rows: by table, only rows that were new.
        trees: variants whose tree was new here.
        seen: rows read.
    """

    rows: dict[str, int] = field(default_factory=dict)
    trees: int = 0
    logs: int = 0
    seen: int = 0


def export_memory(memory: Memory, variants: VariantStore, logs: LogStore, file: TextIO) -> int:
    """Write everything that is recorded, with the trees and logs that are here.

    Returns:
        The number of rows written.
    """
    count = 0
    for line in lines(memory, variants, logs):
        file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
        count += "table" in line
    return count


def lines_before(
    memory: Memory, variants: VariantStore, logs: LogStore, moment: float
) -> Iterator[dict[str, Any]]:
    """Yield what an export would have consisted of at a moment."""
    known: set[str] = set()
    for line in lines(memory, variants, logs):
        if "table" in line:
            if line["row"][_WRITTEN[line["table"]]] >= moment:
                continue
            if line["table"] == "variants":
                known.add(line["row"]["id"])
        if "tree" not in line or line["tree"] in known:
            yield line


def lines(memory: Memory, variants: VariantStore, logs: LogStore) -> Iterator[dict[str, Any]]:
    """Yield what an export consists of."""
    yield {"format": _FORMAT, "schema": HEAD}
    with memory.database.transaction() as connection:
        for name in _RECORDED:
            table = TABLES[name]
            order = table.c[_ORDER[name]] if name in _ORDER else next(iter(table.primary_key))
            rows = connection.execution_options(yield_per=_BATCH).execute(
                select(*_columns(table)).order_by(order)
            )
            for row in rows.mappings():
                yield {"table": name, "row": dict(row)}
    for variant in memory.variants():
        try:
            tree = variants.read(variant.id)
        except FileNotFoundError:  # of another machine, or pruned
            continue
        files = {path: base64.b64encode(data).decode() for path, data in tree.files.items()}
        yield {"tree": variant.id, "files": files}
    for name in logs.names():
        yield {"log": name, "text": logs.read(name)}


def import_memory(
    memory: Memory,
    variants: VariantStore,
    logs: LogStore,
    source: Iterable[str | dict[str, Any]],
    say: Callable[[str], None] = lambda _: None,
) -> Joined:
    """Add what an export holds: all its rows in one transaction, or none.

    Args:
        source: lines of text, or of `lines`.

    Raises:
        SlipstreamError: no export, a damaged one, or one of a newer slipstream.
    """
    parsed = _parsed(source)
    header = next(parsed, {})
    if header.get("format") != _FORMAT:
        raise SlipstreamError("this is no export of slipstream's memory: its first line says so")
    if str(header.get("schema")) > HEAD:
        raise SlipstreamError(
            f"the export's schema is {header['schema']}, this slipstream knows up to {HEAD}; "
            "upgrade slipstream"
        )
    joined = Joined()
    with memory.database.transaction() as connection:
        waiting: list[dict[str, Any]] = []
        table = ""
        for line in parsed:
            if line.get("table") != table or len(waiting) == _BATCH:
                _insert(connection, table, waiting, joined)
                table, waiting = line.get("table", ""), []
            if "table" in line:
                waiting.append(_row(line))
                joined.seen += 1
                if joined.seen % 100_000 == 0:
                    say(f"{joined.seen:,} rows read")
            elif "tree" in line:
                joined.trees += _add_tree(variants, line)
            elif "log" in line:
                joined.logs += _add_log(logs, line)
        _insert(connection, table, waiting, joined)
        if joined.rows:
            say("deriving standings, ledger and calibration anew")
            derive.rebuild(connection)
    return joined


def _parsed(source: Iterable[str | dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(source, start=1):
        if isinstance(line, str):
            try:
                line = json.loads(line)
            except ValueError as error:
                raise SlipstreamError(f"line {number} is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise SlipstreamError(f"line {number} is no JSON object")
        yield line


def _row(line: dict[str, Any]) -> dict[str, Any]:
    table = line["table"]
    if table not in _RECORDED:
        raise SlipstreamError(f"table {table!r}: not one of {', '.join(_RECORDED)}")
    columns = {column.name: column for column in _columns(TABLES[table])}
    row = line.get("row")
    if not isinstance(row, dict) or not set(row) <= set(columns):
        raise SlipstreamError(f"a row of {table} is damaged: {str(row)[:200]}")
    row = {**{name: _LATER[table, name] for name in columns if (table, name) in _LATER}, **row}
    if len(row) != len(columns):
        raise SlipstreamError(f"a row of {table} is damaged: {str(row)[:200]}")
    for name, value in row.items():  # SQLite would take a text for a number
        if not _fits(columns[name], value):
            raise SlipstreamError(f"a row of {table} is damaged: {name} is {str(value)[:100]!r}")
    return row


def _fits(column: Column[Any], value: object) -> bool:
    if value is None:
        return bool(column.nullable)
    match column.type:
        case JSON():
            return isinstance(value, dict | list)
        case Boolean():
            return isinstance(value, bool)
        case Float():
            return isinstance(value, float | int) and not isinstance(value, bool)
        case Integer():
            return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


def _columns(table: Table) -> list[Column[Any]]:
    """Return what a row consists of: everything but a number that only this database gave it."""
    return [c for c in table.columns if not (c.name == "id" and c.primary_key and _is_number(c))]


def _is_number(column: Column[Any]) -> bool:
    return isinstance(column.type, Integer)


def _insert(connection: Connection, name: str, rows: list[dict[str, Any]], joined: Joined) -> None:
    if not rows:
        return
    dialect = connection.dialect.name
    added = connection.execute(queries.insert_or_ignore(dialect, TABLES[name]), rows).rowcount
    if added:
        joined.rows[name] = joined.rows.get(name, 0) + added
    if name == "runs":  # one that was exported while it went on may have got further
        for row in rows:
            connection.execute(queries.get_further(row))


def _add_tree(variants: VariantStore, line: dict[str, Any]) -> int:
    for path in line["files"]:  # somebody else wrote them: nothing may land outside the tree
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise SlipstreamError(f"tree {line['tree']} is damaged: path {path!r}")
    tree = Tree({path: base64.b64decode(data) for path, data in line["files"].items()})
    if tree.id != line["tree"]:
        raise SlipstreamError(f"tree {line['tree']} is damaged: its content is {tree.id}")
    if (variants.root / tree.id).is_dir():
        return 0
    variants.add(tree)
    return 1


def _add_log(logs: LogStore, line: dict[str, Any]) -> int:
    known = logs.path(line["log"]).exists()
    if logs.add(line["text"]) != line["log"]:
        raise SlipstreamError(f"log {line['log']} is damaged")
    return int(not known)
