"""A run on a real Ray cluster: a head without room, and nodes that each have room for one place.

`test_cluster.py` runs these, each in a process of its own: a process that has been a Ray driver is
ended by Ray a minute after its cluster is gone.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import places
import pytest
import ray
from instant import SMOLLM2
from loops import Loop, make_loop
from ray.cluster_utils import Cluster

from slipstream.evaluation import cluster as clusters
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import EngineFailedError
from slipstream.evaluation.executors import open_places, parse_executor
from slipstream.evaluation.hardware import detect_hardware
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.pool import Pool
from slipstream.evaluation.station import Assignment, FarEvaluator
from slipstream.graph.session import resume
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory.records import REMATCH, RunState


@pytest.fixture
def cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", places.HELPERS)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def on_ray(loop: Loop, count: int) -> Bench:
    given = Assignment(loop.challenge.model_dump(mode="json"), 1, "s")
    line = partial(clusters.RayLine, given, make=places.make_waiting, resources={"num_cpus": 1})
    read = VariantStore(data_dir() / "variants").read
    pool = Pool([FarEvaluator(line, read) for _ in range(count)])
    return Bench(pool, SMOLLM2, loop.challenge.quality.documents, shared=True, places=count)


def worker_pids() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::Station"):
            found.append(int(folder.name))
    return found


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_survives_a_killed_worker_and_a_killed_node(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slipstream.graph.opening.bandwidth_of", lambda _: 28.0)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    loop = make_loop()
    run = loop.start(experiments=8, parallel=4)
    with ThreadPoolExecutor() as threads:
        bench = on_ray(loop, 3)
        running = threads.submit(resume, run, loop.memory, emit=loop.events.append, bench=bench)
        wait_until(worker_pids)
        time.sleep(1.0)
        os.kill(worker_pids()[0], signal.SIGKILL)
        time.sleep(2.0)
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert not running.done()  # all of this happened in the middle
        outcome = running.result()
    bench.evaluator.close()
    assert outcome.run.state is RunState.FINISHED
    assert any("was lost" in text for text in loop.texts("benchmarker"))
    planned = {h.id for h in loop.memory.hypotheses(run) if h.lever != REMATCH}
    found = [e for e in loop.memory.experiments(run=run) if e.id in planned]
    assert len(found) == 8
    assert all(e.verdict is not None and e.verdict != "failed" for e in found)
    for experiment in loop.memory.experiments(run=run):
        keys = [(p.stage, p.index) for p in loop.memory.evidence(experiment.id).pairs]
        assert len(keys) == len(set(keys))
    loop.memory.close()


def test_real_engines_are_measured(
    cluster: Cluster, unhurried: Challenge, store: VariantStore, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=os.cpu_count())
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    executor = parse_executor("ray")
    with open_places(executor, unhurried, store, tmp_path, seed=7, unsafe_local=True) as bench:
        assert bench.site is not None
        assert bench.site.hardware == detect_hardware()
        pairs = list(bench.evaluator.pairs(seed.id, places.BASELINE, Stage.SCREEN, {0: 0, 1: 0}))
        assert all(pair.tps > 0 and len(pair.tokens[0]) == 8 for pair in pairs)
        with pytest.raises(EngineFailedError, match="broken on purpose"):
            bench.evaluator.smoke(places.broken(store).id)
