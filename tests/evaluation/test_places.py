"""Places to measure in other processes, and on a Ray cluster: real ones, really killed."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import places
import pytest
import ray
from instant import SMOLLM2
from loops import Loop, make_loop
from ray.cluster_utils import Cluster
from tiny_challenge import TINY

from slipstream.evaluation import cluster as clusters
from slipstream.evaluation import executors
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.evaluation.errors import EngineFailedError, SlipstreamError, WorkerLostError
from slipstream.evaluation.executors import far_places, open_places, parse_executor
from slipstream.evaluation.hardware import detect_hardware
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.pool import Pool
from slipstream.evaluation.processes import ProcessLine
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.secret import secret_text
from slipstream.evaluation.station import Assignment, FarEvaluator
from slipstream.evaluation.tenancy import alone_on
from slipstream.graph.session import resume
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree
from slipstream.memory.records import REMATCH, RunState

BASELINE = "transformers-fp32"
HELPERS = Path(__file__).resolve().parent.parent / "helpers"  # for other processes


@pytest.fixture
def challenge() -> Challenge:
    return parse_challenge(
        TINY.replace("audit_blocks = 3", "max_disturbance = 100.0"), source="tiny"
    )


@pytest.fixture
def store(home: Path, shared_home: Path, tiny_llama: Path) -> VariantStore:
    shutil.copytree(shared_home / "models", home / "models")
    return VariantStore(data_dir() / "variants")


def assignment(challenge: Challenge) -> Assignment:
    return Assignment(challenge.model_dump(mode="json"), 7, secret_text(), unsafe_local=True)


def broken(store: VariantStore) -> Tree:
    tree = seed_tree(SEED_SETTINGS)
    files = {**tree.files, "engine/__init__.py": b"raise RuntimeError('broken on purpose')\n"}
    bad = Tree(files)
    store.add(bad)
    return bad


def test_a_station_measures_as_the_process_itself_does(
    challenge: Challenge, store: VariantStore, tmp_path: Path
) -> None:
    """One line, all questions, a real model; what both say agrees where it isn't a speed."""
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    far = FarEvaluator(partial(ProcessLine, assignment(challenge)), store.read)
    local = open_places(
        parse_executor("local"), challenge, store, tmp_path, seed=7, unsafe_local=True
    )
    with local as bench:
        try:
            assert far.site().hardware == detect_hardware()
            shape, num_documents = far.bench()
            assert (shape, num_documents) == (bench.shape, bench.num_documents)
            far.smoke(seed.id)
            there = list(far.pairs(seed.id, BASELINE, Stage.BASELINE, {0: 0, 1: 0}))
            here = list(bench.evaluator.pairs(seed.id, BASELINE, Stage.BASELINE, {0: 0, 1: 0}))
            assert [p.prompts for p in there] == [p.prompts for p in here]
            assert [p.order for p in there] == [p.order for p in here]
            assert [p.tokens for p in there] == [p.tokens for p in here]
            for split in Split:  # held-out documents too: the secret is the same one
                mine = list(bench.evaluator.scores(seed.id, split, ()))
                assert list(far.scores(seed.id, split, ())) == mine
            with pytest.raises(EngineFailedError, match="broken on purpose"):
                far.smoke(broken(store).id)
        finally:
            far.close()


def test_a_station_that_is_killed_is_lost_and_then_another(
    challenge: Challenge, store: VariantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    lines: list[ProcessLine] = []

    def connect() -> ProcessLine:
        lines.append(ProcessLine(assignment(challenge), make=places.make_waiting))
        return lines[-1]

    far = FarEvaluator(connect, store.read)
    try:
        series = far.pairs(seed.id, BASELINE, Stage.SCREEN, dict.fromkeys(range(8), 0))
        first = next(series)
        os.kill(lines[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match=r"ended \(exit -9\)"):
            list(series)
        assert first.index == 0
        rest = list(far.pairs(seed.id, BASELINE, Stage.SCREEN, {1: 0}))
        assert [pair.index for pair in rest] == [1]
        assert len(lines) == 2
    finally:
        far.close()
    assert lines[1]._process.poll() is not None


def test_a_series_that_is_left_in_the_middle_frees_the_station(
    challenge: Challenge, store: VariantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    far = FarEvaluator(
        partial(ProcessLine, assignment(challenge), make=places.make_waiting), store.read
    )
    try:
        series = far.scores(seed.id, Split.PUBLIC, ())
        next(series)
        series.close()
        far.smoke(seed.id)
        assert len(list(far.scores(seed.id, Split.PUBLIC, ()))) == 4
    finally:
        far.close()


def test_places_of_two_kinds_are_refused(
    challenge: Challenge, store: VariantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = iter(["here", "elsewhere"])
    real = FarEvaluator.site

    def site(self: FarEvaluator):  # type: ignore[no-untyped-def]
        found = real(self)
        hardware = type(found.hardware)(next(kinds), 2, 8.0, (), True)
        return type(found)(hardware, True, "")

    monkeypatch.setattr(FarEvaluator, "site", site)
    lines = [partial(ProcessLine, assignment(challenge))] * 2
    opened = far_places(lines, store)  # type: ignore[arg-type]
    differ = r"places differ: here \(2 cores.*and elsewhere"
    with pytest.raises(SlipstreamError, match=differ), opened:
        pass


@pytest.mark.parametrize("text", ["moon", "local:x", "hf_jobs", "local:-1"])
def test_an_unknown_executor_is_named(text: str) -> None:
    with pytest.raises(SlipstreamError, match=f"executor '{text}': use local"):
        parse_executor(text)


def test_a_cpu_has_one_place(challenge: Challenge, store: VariantStore, tmp_path: Path) -> None:
    opened = open_places(parse_executor("local:2"), challenge, store, tmp_path, seed=1)
    with pytest.raises(SlipstreamError, match="a measurement takes all cores"), opened:
        pass


def test_ray_without_a_cluster_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(SlipstreamError, match=r"no cluster at auto: Could not.*ray start --head"):
        clusters.join("")


# A real Ray cluster: a head without room, and nodes that each have room for one place.


@pytest.fixture
def cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
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


def test_a_run_on_ray_survives_a_killed_worker_and_a_killed_node(
    cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slipstream.graph.opening.bandwidth_of", lambda _: 28.0)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    loop = make_loop()
    run = loop.start(experiments=8, parallel=4)
    killed: list[str] = []

    def disturb() -> None:
        while not (pids := worker_pids()):
            time.sleep(0.1)
        time.sleep(1.0)
        os.kill(pids[0], signal.SIGKILL)
        killed.append("worker")
        time.sleep(2.0)
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed.append("node")
        cluster.add_node(num_cpus=1)

    trouble = threading.Thread(target=disturb)
    trouble.start()
    outcome = resume(run, loop.memory, emit=loop.events.append, bench=on_ray(loop, 3))
    trouble.join()
    assert killed == ["worker", "node"]
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


def test_real_engines_are_measured_on_a_cluster(
    cluster: Cluster, challenge: Challenge, store: VariantStore, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=os.cpu_count())
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    executor = parse_executor("ray")
    with open_places(executor, challenge, store, tmp_path, seed=7, unsafe_local=True) as bench:
        assert bench.site is not None
        assert bench.site.hardware == detect_hardware()
        pairs = list(bench.evaluator.pairs(seed.id, BASELINE, Stage.SCREEN, {0: 0, 1: 0}))
        assert all(pair.tps > 0 and len(pair.tokens[0]) == 8 for pair in pairs)
        with pytest.raises(EngineFailedError, match="broken on purpose"):
            bench.evaluator.smoke(broken(store).id)


@pytest.mark.parametrize(
    ("wanted", "shown", "expected"),
    [("local", "3,5", ["3", "5"]), ("local:1", "3,5", ["3"]), ("local", "GPU-a,GPU-b,-1", 2)],
)
def test_each_gpu_gets_a_worker_by_the_name_that_cuda_has_for_it(
    challenge: Challenge,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    shown: str,
    expected: list[str] | int,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    on_gpus = challenge.model_copy(update={"device": "cuda"})
    found = executors._gpus(parse_executor(wanted), on_gpus)
    assert found == expected or len(found) == expected


def test_more_gpus_than_there_are_is_an_error(
    challenge: Challenge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    on_gpus = challenge.model_copy(update={"device": "cuda"})
    with pytest.raises(SlipstreamError, match="local:4: this machine shows 1 GPUs"):
        executors._gpus(parse_executor("local:4"), on_gpus)


def test_a_gpu_has_one_tenant_and_the_second_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"GPU-of-test-{os.getpid()}")
    told: list[str] = []
    inside = threading.Event()

    def second() -> None:
        with alone_on("cuda", told.append):
            inside.set()

    with alone_on("cuda", told.append):
        other = threading.Thread(target=second)
        other.start()
        while not told:
            time.sleep(0.01)
        assert "another slipstream's: waiting" in told[0]
        assert not inside.is_set()
    other.join(10)
    assert inside.is_set()
