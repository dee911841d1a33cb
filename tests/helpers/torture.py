"""Kills, stops and starts real loops on one memory, and counts what that cost.

    python tests/helpers/torture.py [--kills 1000] [--stops 20] [--backend sqlite|postgres|both]

The loop is whole (LangGraph with checkpoints on disk, memory, git, trees); only engines are
instant, so that a kill lands somewhere else each time. A parent that has imported everything forks
one process after the other; each resumes the run at hand or starts a new one, and dies by SIGKILL
at a random moment, or right before or after the k-th side effect, for every k. Some are stopped
past their lease instead, until a rival has taken what they were at, and go on.

Each process reports over a pipe what memory acknowledged and what it began to measure. Counted in
the end: acknowledged rows that are missing, pairs that count twice, and measurements begun again
although their result was acknowledged; and, as a sign that claims are tested at all, writes that
were refused because a rival had the claim. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import instant
import loops
from postgres import Server
from sqlalchemy import func, select

from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.evaluator import Evaluator
from slipstream.graph import opening
from slipstream.graph.session import new_run, resume
from slipstream.kernels.variants import VariantStore
from slipstream.kernels.workshop import Workshop
from slipstream.memory import claims, upkeep
from slipstream.memory.claims import Claim, Claims, StaleClaimError
from slipstream.memory.logs import LogStore
from slipstream.memory.queries import TABLES
from slipstream.memory.records import RunState
from slipstream.memory.store import Memory, open_memory

SIDE_EFFECTS: list[tuple[type, str]] = [
    (Memory, "_insert"),
    (Memory, "record"),
    (Memory, "update_run"),
    (Claims, "acquire"),
    (Claims, "release"),
    (VariantStore, "add"),
    (Workshop, "commit"),
    (Workshop, "promote"),
]
LEASE_S = 0.6
_RIVAL = "rival"
_RIVALS_LEASE_S = 0.2
_PATIENCE_S = 0.5  # a stopped process may hold the lock that its rival waits for
_MAX_ERRORS = 10
_MORE_STOPS = 20
_NATURAL_KEYS = {
    "measurements": ("experiment", "stage", "index", "attempt"),
    "scores": ("experiment", "split", "document"),
    "audits": ("experiment", "stage", "index", "block"),
    "verdicts": ("experiment",),
    "findings": ("experiment",),
}


@dataclass
class Toll:
    """What it cost."""

    kills: int = 0
    stops: int = 0
    taken: int = 0
    points: int = 0
    runs_finished: int = 0
    rows: int = 0
    refused: int = 0
    lost: int = 0
    duplicated: int = 0
    measured_twice: int = 0
    faults: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Victim:
    """One process of the loop, forked; it reports on `pipe`."""

    def __init__(self, url: str, home: Path, *, crash_at: int = 0, before: bool = False) -> None:
        self._reader, writer = os.pipe()
        self.events: list[tuple[str, Any]] = []
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            code = 1
            try:
                _live(url, home, writer, crash_at, before)
                code = 0
            except BaseException as error:
                _report(writer, "error", f"{type(error).__name__}: {error}"[:500])
            finally:
                os._exit(code)
        os.close(writer)
        os.set_blocking(self._reader, False)

    def listen(self) -> None:
        """Read what it has reported so far."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader, 1 << 16):
                self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        self.events += [tuple(json.loads(line)) for line in lines]

    def wait(self, timeout_s: float) -> bool:
        """Wait until it ends by itself; return whether it did."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.listen()
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self._close()
                return True
            time.sleep(0.002)
        return False

    def is_alive(self) -> bool:
        """Whether it runs yet, or is stopped; it stays to be waited for."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._close()

    def _close(self) -> None:
        self.listen()
        os.close(self._reader)


def _report(pipe: int, kind: str, what: object) -> None:
    os.write(pipe, json.dumps([kind, what]).encode() + b"\n")  # short: atomic on a pipe


def _live(url: str, home: Path, pipe: int, crash_at: int, before: bool) -> None:
    """Finish the run at hand, then start another, and so on, until killed."""
    os.environ["SLIPSTREAM_HOME"] = str(home)
    claims.LEASE_S = LEASE_S
    opening.bandwidth_of = lambda _: 28.0
    real_insert = Memory._insert

    def insert(self: Memory, table: str, *rows: dict[str, Any], claim: Any = None) -> None:
        try:
            real_insert(self, table, *rows, claim=claim)
        except StaleClaimError:
            _report(pipe, "refused", table)
            raise
        for row in rows:
            if table in _NATURAL_KEYS:
                key = [str(row[name]) for name in _NATURAL_KEYS[table]]
                _report(pipe, "written", [table, *key])

    real_record = Memory.record

    def record(self: Memory, experiment: str, *rest: Any) -> None:
        try:
            real_record(self, experiment, *rest)
        except StaleClaimError:
            _report(pipe, "refused", "verdicts")
            raise
        _report(pipe, "written", ["verdicts", experiment])
        if rest[1] is not None:
            _report(pipe, "written", ["findings", experiment])

    Memory._insert, Memory.record = insert, record  # type: ignore[method-assign]
    _crash(crash_at, before=before)
    memory = open_memory(url)
    store = VariantStore(home / "variants")
    while True:
        unfinished = [run for run in memory.runs() if run.state is not RunState.FINISHED]
        if unfinished:
            name = unfinished[0].id
        else:
            text = loops.CHALLENGE.replace("instant", f"torture-{len(memory.runs())}", 1)
            challenge = parse_challenge(text, source="torture")
            name = new_run(challenge, memory, experiments=3, seed=len(memory.runs())).id
        evaluator = Reporting(store.read, pipe, name)
        documents = 4
        bench = loops.Bench(evaluator, instant.SMOLLM2, documents)
        resume(name, memory, bench=bench)
        _report(pipe, "finished", name)
        if crash_at:
            return


class Reporting(instant.InstantEvaluator):
    """An instant evaluator that reports what it is asked to measure."""

    def __init__(self, read: Callable[[str], Any], pipe: int, run: str) -> None:
        super().__init__(read)
        self._pipe, self._run = pipe, run

    def pairs(self, variant: str, rival: str, stage: Any, attempts: Any) -> Iterator[Any]:
        for pair in super().pairs(variant, rival, stage, attempts):
            what = [self._run, variant, rival, str(stage), str(pair.index)]
            _report(self._pipe, "measured", what)
            yield pair


_: type[Evaluator] = Reporting  # it is one


def _crash(at: int, *, before: bool) -> None:
    """Have this process killed right before or after side effect `at`."""
    if not at:
        return
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **named)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for owner, name in SIDE_EFFECTS:
        setattr(owner, name, wrap(getattr(owner, name)))


class Torture:
    """Drives victims on one memory and keeps the books."""

    def __init__(self, url: str, home: Path, seed: int = 1) -> None:
        self.url, self.home, self.rng = url, home, random.Random(seed)
        self.toll = Toll()
        self.written: set[tuple[str, ...]] = set()
        self._known: set[tuple[str, ...]] = set()  # pairs whose result was acknowledged

    def kill(self) -> None:
        """Let one live for a moment, and kill it."""
        victim = Victim(self.url, self.home)
        if not victim.wait(self.rng.uniform(0.0, 1.2)):
            victim.kill()
            self.toll.kills += 1
        self._book(victim)

    def stop(self) -> None:
        """Stop one past its lease, have a rival take its claims, let it go on, kill it later."""
        victim = Victim(self.url, self.home)
        if not victim.wait(self.rng.uniform(0.2, 1.0)):
            with open_memory(self.url) as memory:
                if self._stop_at_work(victim, memory):
                    self.toll.taken += self._usurp(victim, memory)
            victim.signal(signal.SIGCONT)
            if not victim.wait(0.6):
                victim.kill()
            self.toll.stops += 1
        self._book(victim)

    def _stop_at_work(self, victim: Victim, memory: Memory) -> bool:
        """Stop a victim while it measures; return False if it ended or never did."""
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline and victim.is_alive():
            victim.signal(signal.SIGSTOP)
            if memory.claims.live("measure|"):
                return True
            victim.signal(signal.SIGCONT)
            time.sleep(0.01)
        return False

    def _usurp(self, victim: Victim, memory: Memory) -> int:
        """Take a stopped victim's claims once they have run out; return how many it were."""
        keys = [holding.key for holding in memory.claims.live("measure|")]
        time.sleep(1.5 * LEASE_S)
        taken: list[str] = []

        def take() -> None:
            for key in keys:
                if isinstance(memory.claims.acquire(key, _RIVAL, _RIVALS_LEASE_S), Claim):
                    taken.append(key)

        rival = threading.Thread(target=take)
        rival.start()
        rival.join(_PATIENCE_S)
        victim.signal(signal.SIGCONT)
        rival.join()
        return len(taken)

    def every_point(self, most: int = 10_000, step: int = 1) -> None:
        """Kill right before and after each side effect of a run."""
        number, finished = 0, False
        while not finished and number < most:
            number += step
            for before in (True, False):
                victim = Victim(self.url, self.home, crash_at=number, before=before)
                ended = victim.wait(60.0)
                self._book(victim)
                if not ended:
                    victim.kill()
                    self._complain(f"point {number} hangs")
                self.toll.points += 1
                finished = any(kind == "finished" for kind, _ in victim.events)
                self.finish()

    def finish(self) -> None:
        """Let the run at hand come to its end."""
        victim = Victim(self.url, self.home, crash_at=1_000_000)
        if not victim.wait(120.0):
            victim.kill()
            self._complain("a resumed run doesn't end")
        self._book(victim)

    def _book(self, victim: Victim) -> None:
        begun: tuple[str, ...] = ()
        for kind, what in victim.events:
            match kind:
                case "written":
                    self.written.add(tuple(what))
                    if what[0] == "measurements":
                        self._known.add(begun)
                case "measured":
                    begun = tuple(what)
                    self.toll.measured_twice += begun in self._known
                case "refused":
                    self.toll.refused += 1
                case "finished":
                    self.toll.runs_finished += 1
                case "error":
                    self._complain(what)

    def _complain(self, what: str) -> None:
        if what not in self.toll.errors and len(self.toll.errors) < _MAX_ERRORS:
            self.toll.errors.append(what)

    def settle(self) -> Toll:
        """Count what was lost, is there twice, or was measured twice."""
        with open_memory(self.url) as memory:
            kept: Counter[tuple[str, ...]] = Counter()
            for name, columns in _NATURAL_KEYS.items():
                table = TABLES[name]
                query = select(*(table.c[column] for column in columns))
                rows = memory.database.read(lambda c, q=query: c.execute(q).all())  # type: ignore[misc]
                kept.update((name, *map(str, row)) for row in rows)
            self.toll.rows = sum(kept.values())
            self.toll.lost = sum(key not in kept for key in self.written)
            self.toll.duplicated = self._duplicated(memory)
            self.toll.measured_twice += self._twice(memory)
            logs = LogStore(self.home / "logs")
            variants = VariantStore(self.home / "variants")
            found = upkeep.check(memory, variants, logs, self.home / "runs")
            self.toll.faults = len(found)
            for fault in found:
                self._complain(f"{fault.what}: {fault.found}")
        return self.toll

    def _duplicated(self, memory: Memory) -> int:
        """Count pairs that count more than once: with two attempts of which neither is void."""
        table = TABLES["measurements"]
        pair = [table.c[name] for name in ("experiment", "stage", "index")]
        query = select(func.count()).where(table.c.void == "").group_by(*pair)
        return sum(count - 1 for count in memory.database.read(lambda c: c.scalars(query).all()))

    def _twice(self, memory: Memory) -> int:
        """Count variants that several experiments of one run measured for a verdict each.

        Each run has a challenge of its own, so those of others say nothing here.
        """
        by_place: Counter[tuple[str, str]] = Counter()
        for experiment in memory.experiments():
            judged = experiment.hypothesis is not None and experiment.gain is not None
            if judged:
                by_place[experiment.run, experiment.variant] += 1
        return sum(count - 1 for count in by_place.values())


def torture(url: str, home: Path, kills: int, stops: int, most_points: int, step: int = 1) -> Toll:
    """Do it all on one memory; return what it cost."""
    begun = time.monotonic()
    work = Torture(url, home)
    open_memory(url).close()
    for number in range(kills):
        if stops and number % max(1, kills // stops) == 0:
            work.stop()
        work.kill()
        if sys.stderr.isatty() and number % 20 == 0:
            print(f"\r{number}/{kills}", end="", file=sys.stderr)
    # Where a stopped one is killed before it writes, nothing shows that it would have been refused.
    for _ in range(_MORE_STOPS if stops else 0):
        if work.toll.refused:
            break
        work.stop()
    work.finish()
    work.every_point(most_points, step)
    toll = work.settle()
    toll.seconds = time.monotonic() - begun
    return toll


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--points", type=int, default=10_000, help="side effects to crash at")
    parser.add_argument("--backend", choices=["sqlite", "postgres", "both"], default="both")
    chosen = parser.parse_args()
    backends = ["sqlite", "postgres"] if chosen.backend == "both" else [chosen.backend]
    tolls = {}
    for backend in backends:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            home = Path(folder) / "home"
            server = Server(Path(folder) / "pg") if backend == "postgres" else None
            url = server.new_database() if server else f"sqlite:///{folder}/m.db"
            try:
                toll = torture(url, home, chosen.kills, chosen.stops, chosen.points)
            finally:
                if server:
                    server.stop("immediate")
        tolls[backend] = asdict(toll)
        for name, value in asdict(toll).items():
            print(f"{backend:>10} {name:>16} {value}")
    print(json.dumps(tolls))
    bad = ("lost", "duplicated", "measured_twice", "faults", "errors")
    unused = chosen.stops and not all(toll["refused"] for toll in tolls.values())
    sys.exit(bool(unused) or any(toll[name] for toll in tolls.values() for name in bad))


if __name__ == "__main__":
    main()
