"""Many experiments at once: throughput on Ray, exactness while workers are killed, 64 workers.

    python benchmarks/executors.py [--quick]           (needs the extra `cluster`)

1. One Ray worker against four, on a local cluster, each evaluation waiting 2 s: experiments a
   minute of both, and their ratio. The peer is the loop itself with one worker, in the same run.
2. Experiments of 2 s on four workers, one of which is killed every 20 s: how many were lost, how
   many measurements were kept twice.
3. 64 simulated workers (threads that wait 30 s for an experiment): the share of their time in which
   they were busy, from the moment when all are first busy until nothing new is begun.

Waiting stands in for a GPU: graph, planner, memory, Ray and acceptance rule are the real ones. The
last line is JSON.
"""

import argparse
import functools
import json
import math
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slipstream.agents.roles import Briefing, Proposal
from slipstream.evaluation.audits import Audit
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.evaluator import Evaluator
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.pool import Pool
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.station import Assignment, FarEvaluator
from slipstream.graph import opening
from slipstream.graph.opening import Agents
from slipstream.graph.session import new_run, resume
from slipstream.kernels.census import ModelShape
from slipstream.kernels.variants import VariantStore
from slipstream.memory.records import REMATCH
from slipstream.memory.store import open_memory

SHAPE = ModelShape(576, 1536, 30, 9, 3, 64, 49152, family="llama")
CHALLENGE = """
name = "waiting"
title = "an evaluation that waits"
model = "random:tiny-llama"
device = "cpu"
[quality]
enabled = false
[acceptance]
screen_pairs = 2
audit_blocks = 0
calibration_minutes = 100000
reverify_every = 100000
[budget]
minutes = 100000
experiments = 1
"""


class Waiting:
    """Satisfies `Evaluator`: waits, then says that the candidate is no faster."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.busy_s = seconds, 0.0
        self.spans: list[tuple[float, float]] = []

    def prepare(self) -> None: ...

    def expect(self, plan: object) -> None: ...

    def smoke(self, variant: str) -> str:
        return ""

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for index in attempts:
            begun = time.monotonic()
            time.sleep(self.seconds / 2 if stage is Stage.SCREEN else 0.001)
            self.spans.append((begun, time.monotonic()))
            wobble = np.random.default_rng([index, *variant.encode()]).normal(0, 0.001)
            tps = 100.0 * math.exp(-0.02 + wobble) if variant != rival else 100.0
            yield Pair(stage, index, ("p", "q"), "ABBA", tps, 100.0, ((0,), (0,)))

    def scores(self, variant: str, split: Split, done: Collection[str]) -> Iterator[DocumentScore]:
        return iter(())

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Iterator[Audit]:
        return iter(())

    def release(self, variant: str) -> None: ...

    def close(self) -> None: ...


def make_waiting(seconds: float, *_: object) -> Waiting:
    """Open what a station measures with; assignment and store don't matter here."""
    return Waiting(seconds)


class Numbered:
    """A planner that never runs out: each proposal is new source, so that none is a repetition."""

    name = "numbered"

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        begun = len(briefing.planned)
        return [
            Proposal(
                "edit",
                briefing.champion_settings,
                f"idea {begun + i}",
                0.01,
                target=f"edit {begun + i}",
            )
            for i in range(count)
        ]


class NumberedCoder:
    name = "numbered"

    def implement(self, hypothesis: Any, parent: Any, bench: Any) -> Any:
        files = dict(parent.files)
        files["engine/note.py"] = f"# {hypothesis.id}\n".encode()
        return type(parent)(files)

    def repair(self, hypothesis: Any, tree: Any, error: str, bench: Any) -> None:
        return None


def drive(evaluators: Sequence[Evaluator], experiments: int, parallel: int) -> dict[str, Any]:
    """Run the loop in a home of its own; return what happened."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["SLIPSTREAM_HOME"] = home
        opening.bandwidth_of = lambda _: 28.0  # type: ignore[assignment]
        challenge = parse_challenge(CHALLENGE, source="waiting")
        with open_memory() as memory:
            run = new_run(
                challenge, memory, experiments=experiments, seed=1, parallel=parallel,
                unsafe_local=True,
            ).id  # fmt: skip
            bench = Bench(Pool(evaluators), SHAPE, 0, shared=True, places=len(evaluators))
            agents = Agents(planner=Numbered(), coder=NumberedCoder())
            told: list[str] = []
            begun = time.monotonic()
            resume(run, memory, agents=agents, bench=bench, emit=lambda e: told.append(e.text))
            wall_s = time.monotonic() - begun
            planned = [h.id for h in memory.hypotheses(run) if h.lever != REMATCH]
            found = [memory.experiment(name) for name in planned]
            twice = 0
            for name in planned:
                keys = [(p.stage, p.index) for p in memory.evidence(name).pairs]
                twice += len(keys) - len(set(keys))
            return {
                "wall_s": wall_s,
                "planned": len(planned),
                "lost": sum(e is None or e.verdict is None or e.verdict == "failed" for e in found),
                "twice": twice,
                "losses": sum("was lost" in text for text in told),
            }


def on_ray(seconds: float, count: int) -> list[Evaluator]:
    from slipstream.evaluation.cluster import RayLine

    assignment = Assignment(
        parse_challenge(CHALLENGE, source="waiting").model_dump(mode="json"), 1, "s"
    )
    line = functools.partial(
        RayLine,
        assignment,
        make=functools.partial(make_waiting, seconds),
        resources={"num_cpus": 1},
    )

    def read(variant: str) -> Any:
        return VariantStore(data_dir() / "variants").read(variant)

    return [FarEvaluator(line, read) for _ in range(count)]


def kill_now_and_then(every_s: float, over: threading.Event, killed: list[int]) -> None:
    """Kill one of the workers every so often."""
    rng = random.Random(3)
    while not over.wait(every_s):
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes().startswith(b"ray::Station"):
                    pids.append(int(folder.name))
            except OSError:
                continue
        if pids:
            victim = rng.choice(pids)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)


def utilisation(workers: Sequence[Waiting]) -> float:
    """Return the busy share from when all are first busy until the first has nothing left."""
    spans = [worker.spans for worker in workers]
    own = [[s for s in one if s[1] - s[0] > 0.5] for one in spans]
    begin = max(one[0][0] for one in own)
    end = min(one[-1][1] for one in own)
    busy = sum(max(0.0, min(b, end) - max(a, begin)) for one in own for a, b in one)
    return busy / (len(own) * (end - begin))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--skip-ray", action="store_true")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    result: dict[str, Any] = {"cores": os.cpu_count()}
    table = Table(title="many at once", title_justify="left", box=None)
    for column in ("what", "figure", "asked"):
        table.add_column(column)
    if not given.skip_ray:
        import ray

        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
        ray.init(num_cpus=4, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        rates = {}
        for count in (1, 4):
            done = drive(on_ray(2.0, count), 40 * count // share, count + 2 * (count > 1))
            rates[count] = done["planned"] / done["wall_s"] * 60
        result["throughput_1"], result["throughput_4"] = rates[1], rates[4]
        result["ratio_4_to_1"] = rates[4] / rates[1]
        table.add_row("4 Ray workers against 1", f"{result['ratio_4_to_1']:.2f}×", "≥ 3.6×")
        over, killed = threading.Event(), []
        trouble = threading.Thread(target=kill_now_and_then, args=[20.0, over, killed])
        trouble.start()
        done = drive(on_ray(2.0, 4), 1000 // share, 6)
        over.set()
        trouble.join()
        result |= {"experiments": done["planned"], "kills": len(killed), "lost": done["lost"]}
        result |= {"twice": done["twice"], "losses_seen": done["losses"]}
        result |= {"killed_wall_s": done["wall_s"]}
        what = f"{done['planned']} experiments, {len(killed)} kills"
        table.add_row(what, f"{done['lost']} lost, {done['twice']} twice", "0, 0")
        ray.shutdown()
    workers = [Waiting(30.0) for _ in range(64)]
    done = drive(workers, 640 if not given.quick else 128, 80)
    result["busy_64"] = utilisation(workers)
    result["wall_64_s"] = done["wall_s"]
    table.add_row(
        f"64 workers, {done['planned']} experiments of 30 s",
        f"{result['busy_64']:.1%} busy",
        "≥ 95 %",
    )
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
