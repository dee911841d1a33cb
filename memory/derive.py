"""What is derived from experiments: the leaderboard's standings, the lever ledger, calibration.

Each verdict changes a handful of derived rows, in its own transaction, so asking takes milliseconds
however much is known. Nothing here is typed by hand: `rebuild` makes it all anew from the tables
that are never changed, and `slipstream memory check` compares.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, false, insert, select, text, update

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.statistics import Estimate

from . import queries
from .folding import (
    CALIBRATION_KEY,
    LEDGER_KEY,
    NOT_RUN,
    fold_calibration,
    fold_ledger,
    is_measured,
    num_trials,
    was_tried,
)
from .queries import TABLES

_Row = Mapping[Any, Any]
_STANDINGS, _LEDGER = TABLES["standings"], TABLES["ledger"]
_CALIBRATION = TABLES["calibration"]
DERIVED = (_STANDINGS, TABLES["lineages"], _LEDGER, _CALIBRATION)
_LOCK = 7358128
_TICK_S = 1e-4
_BATCH = 500
UNRANKED = -1e9  # instead of NULL, which databases sort differently


def add(connection: Connection, experiment: str) -> None:
    """Take one new verdict into account, within the transaction that writes it."""
    judged = connection.execute(queries.JUDGED, {"experiment": experiment}).mappings().one()
    trials = 0
    if was_tried(judged):
        trials = _add_to_ledger(connection, judged)
        _add_to_calibration(connection, judged)
    _refresh_standing(connection, judged, trials)


def lock(connection: Connection) -> None:
    """Let one transaction at a time write verdicts; a transaction takes milliseconds."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    else:  # changes nothing, but takes SQLite's one write lock
        connection.execute(update(_STANDINGS).where(false()).values(kept=False))


def next_moment(connection: Connection, now: ColumnElement[float]) -> float:
    """Return the database's time, later than any verdict: they have one order for everybody."""
    latest = connection.scalar(queries.LATEST_VERDICT) or 0.0
    clock = connection.scalar(select(now)) or 0.0
    return max(clock, latest + _TICK_S)


def rebuild(connection: Connection) -> None:
    """Make all derived rows anew."""
    lock(connection)
    for table in DERIVED:
        connection.execute(delete(table))
    for name, rows in derive(connection).items():
        for start in range(0, len(rows), _BATCH):
            connection.execute(insert(TABLES[name]), rows[start : start + _BATCH])


def derive(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Return what the derived tables should hold, by table."""
    ledger: dict[tuple[str, ...], dict[str, Any]] = {}
    calibration: dict[tuple[str, ...], dict[str, Any]] = {}
    standings: dict[tuple[str, str, str], dict[str, Any]] = {}
    races: dict[tuple[str, str], dict[str, list[_Row]]] = {}
    novelty: dict[tuple[str, str, str], float] = {}
    baselines: dict[tuple[str, str], str] = {}
    lineages = _lineages(connection.execute(queries.PARENTS).mappings())
    for judged in connection.execute(queries.ALL_JUDGED).mappings():
        trials = 0
        if was_tried(judged):
            key = tuple(judged[name] for name in LEDGER_KEY)
            trials = num_trials(ledger.get(key))
            ledger[key] = fold_ledger(ledger.get(key), judged)
            if is_measured(judged):
                key = tuple(judged[name] for name in CALIBRATION_KEY)
                calibration[key] = fold_calibration(calibration.get(key), judged)
        place = judged["challenge"], judged["machine"]
        races.setdefault(place, {}).setdefault(judged["variant"], []).append(judged)
        novelty.setdefault((*place, judged["variant"]), _novelty(judged, trials))
        baselines[place] = judged["baseline"]
    for place, by_variant in races.items():
        for own in by_variant.values():
            own.sort(key=lambda race: (race["started_at"], race["id"]))
        known = chain_speedups(by_variant, baselines[place])
        for variant, own in by_variant.items():
            row = _standing(own, baselines[place], known.get(variant))
            row |= {"lineage": lineages[variant], "novelty": novelty[*place, variant]}
            standings[*place, variant] = row
    return {
        "standings": list(standings.values()),
        "lineages": _lineage_rows(standings.values()),
        "ledger": list(ledger.values()),
        "calibration": list(calibration.values()),
    }


def _add_to_ledger(connection: Connection, judged: _Row) -> int:
    """Fold one experiment in; return how many trials there were before."""
    key = {name: judged[name] for name in LEDGER_KEY}
    entry = connection.execute(queries.LEDGER_ENTRY, key).mappings().one_or_none()
    _upsert(connection, "ledger", fold_ledger(entry, judged))
    return num_trials(entry)


def _add_to_calibration(connection: Connection, judged: _Row) -> None:
    if not is_measured(judged):
        return
    key = {name: judged[name] for name in CALIBRATION_KEY}
    entry = connection.execute(queries.CALIBRATION_ENTRY, key).mappings().one_or_none()
    _upsert(connection, "calibration", fold_calibration(entry, judged))


def chain_speedups(races: Mapping[str, Sequence[_Row]], baseline: str) -> dict[str, Estimate]:
    """Return each variant's speed-up over the baseline, direct or chained, where one is known.

    Args:
        races: judged experiments by variant.
    """
    best = {variant: race for variant, own in races.items() if (race := best_race(own, baseline))}
    found: dict[str, Estimate] = {}
    for variant in best:
        # Follow rivals until one whose speed-up is known, then multiply on the way back.
        chain: list[_Row] = []
        name = variant
        while name in best and name not in found and best[name] not in chain:
            chain.append(best[name])
            name = best[name]["rival"]
        total = found.get(name)
        for race in reversed(chain):
            if total is None and race["rival"] != baseline:
                break
            total = gain_of(race) if total is None else gain_of(race) + total
            found[race["variant"]] = total
    return found


def best_race(own: Sequence[_Row], baseline: str) -> _Row | None:
    """Return the race that says most about a variant's speed; an A/A test says nothing."""
    races = [race for race in own if race["gain"] is not None and race["rival"] != race["variant"]]
    if not races:
        return None
    direct = [race for race in races if race["rival"] == baseline]
    if direct:  # the verification at a run's end has more pairs than a start
        return max(direct, key=lambda race: (race["num_pairs"] or 0, race["started_at"]))
    gains = [race for race in races if race["cause"] == Cause.GAIN]
    return (gains or races)[-1]


def gain_of(race: _Row) -> Estimate:
    """Return the measured gain of a judged experiment that has one."""
    stderr = math.inf if race["gain_stderr"] is None else race["gain_stderr"]
    return Estimate(race["gain"], stderr, race["num_pairs"] or 0)


def _standing(own: Sequence[_Row], baseline: str, speedup: Estimate | None) -> dict[str, Any]:
    """Return a variant's row, without lineage and novelty."""
    tried = [race for race in own if race["cause"] not in NOT_RUN] or own
    races = [race for race in tried if race["rival"] != baseline] or tried
    judged = races[-1]
    scored = [race for race in own if race["ppl_rise"] is not None]
    timed = [race for race in own if race["tps"] is not None]
    best = best_race(own, baseline)
    finite = speedup is not None and math.isfinite(speedup.stderr)
    return {
        "challenge": judged["challenge"],
        "machine": judged["machine"],
        "variant": judged["variant"],
        "verdict": judged["verdict"],
        "cause": judged["cause"],
        "reason": judged["reason"],
        "kept": judged["verdict"] == Verdict.KEPT,
        "experiments": len(own),
        "tps": timed[-1]["tps"] if timed else None,
        "log_speedup": speedup.mean if speedup else None,
        "stderr": speedup.stderr if speedup and finite else None,
        "num_pairs": speedup.num_pairs if speedup else 0,
        "rank": speedup.mean if speedup else UNRANKED,
        "direct": best is not None and best["rival"] == baseline,
        "rival": best["rival"] if best else None,
        "ppl_rise": scored[-1]["ppl_rise"] if scored else None,
        "kl": scored[-1]["kl"] if scored else None,
        "top1": scored[-1]["top1"] if scored else None,
        "decided_at": max(race["decided_at"] for race in own),
    }


def _refresh_standing(connection: Connection, judged: _Row, trials: int) -> None:
    """Derive the standing of a judged variant anew, and of those whose speed-up hangs on it."""
    place = {name: judged[name] for name in ("challenge", "machine")}
    waiting, done = [judged["variant"]], set()
    while waiting:
        variant = waiting.pop()
        done.add(variant)
        key = {**place, "variant": variant}
        own = connection.execute(queries.JUDGED_OF_VARIANT, key).mappings().all()
        before = connection.execute(queries.STANDING, key).mappings().one_or_none()
        race = best_race(own, judged["baseline"])
        row = _standing(own, judged["baseline"], _speedup(connection, place, race, judged))
        if before is None:
            row |= {
                "lineage": _lineage(connection, variant),
                "novelty": _novelty(judged, trials),
            }
        else:
            row |= {"lineage": before["lineage"], "novelty": before["novelty"]}
        _upsert(connection, "standings", row)
        _refresh_lineage(connection, place, row["lineage"], is_new=before is None)
        moved = before is None or any(before[n] != row[n] for n in ("log_speedup", "stderr"))
        if moved:
            hanging = connection.scalars(queries.HANGING_ON, {**place, "rival": variant}).all()
            waiting += [name for name in hanging if name not in done]


def _refresh_lineage(connection: Connection, place: _Row, root: str, *, is_new: bool) -> None:
    """Count a new variant, and see who is best now."""
    key = {**place, "root": root}
    before = connection.execute(queries.LINEAGE, key).mappings().one_or_none()
    best = connection.execute(queries.BEST_OF_LINEAGE, key).mappings().one()
    trials = (before["trials"] if before else 0) + is_new
    row = {**key, "trials": trials, "best": best["variant"]}
    _upsert(connection, "lineages", row | {"kept": best["kept"], "rank": best["rank"]})


def _speedup(
    connection: Connection, place: _Row, race: _Row | None, judged: _Row
) -> Estimate | None:
    if race is None:
        return None
    if race["rival"] == judged["baseline"]:
        return gain_of(race)
    key = {**place, "variant": race["rival"]}
    rival = connection.execute(queries.STANDING, key).mappings().one_or_none()
    if rival is None or rival["log_speedup"] is None:
        return None
    stderr = math.inf if rival["stderr"] is None else rival["stderr"]
    return gain_of(race) + Estimate(rival["log_speedup"], stderr, rival["num_pairs"])


def _novelty(judged: _Row, trials: int) -> float:
    """Return 1 for a change that nobody had tried before, less the more often it was tried."""
    return 0.0 if judged["lever"] is None else 1 / (1 + trials)


def _lineage(connection: Connection, variant: str) -> str:
    rows = connection.execute(queries.ANCESTORS, {"variant": variant}).mappings().all()
    return _lineages(rows)[variant]


def _lineage_rows(standings: Iterable[_Row]) -> list[dict[str, Any]]:
    """Sum standings up by lineage."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for standing in sorted(standings, key=lambda s: (s["kept"], s["rank"], s["variant"])):
        key = {name: standing[name] for name in ("challenge", "machine")}
        key["root"] = standing["lineage"]
        row = rows.setdefault(tuple(key.values()), {**key, "trials": 0})
        row["trials"] += 1  # and the last one is the best
        row |= {"best": standing["variant"], "kept": standing["kept"], "rank": standing["rank"]}
    return list(rows.values())


def _lineages(rows: Iterable[_Row]) -> dict[str, str]:
    """Return for each variant its ancestor next to the root, which names its lineage."""
    parents = {row["id"]: row["parent"] for row in rows}
    found: dict[str, str] = {}
    for variant in parents:
        path, name = [], variant
        while name not in found and parents.get(parents.get(name) or "") is not None:
            path.append(name)
            name = parents[name]
        root = found.get(name, name)
        for passed in (*path, name):
            found[passed] = root
    return found


def _upsert(connection: Connection, table: str, row: dict[str, Any]) -> None:
    connection.execute(queries.upsert(connection.dialect.name, TABLES[table]), row)
