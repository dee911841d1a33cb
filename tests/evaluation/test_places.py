"""Places to measure in other processes: real ones, really killed."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import places
import pytest

from slipstream.evaluation import executors
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import EngineFailedError, SlipstreamError, WorkerLostError
from slipstream.evaluation.executors import far_places, open_places, parse_executor
from slipstream.evaluation.hardware import detect_hardware
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.processes import ProcessLine
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.secret import secret_text
from slipstream.evaluation.station import Assignment, FarEvaluator
from slipstream.evaluation.tenancy import alone_on
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree


def assignment(challenge: Challenge) -> Assignment:
    return Assignment(challenge.model_dump(mode="json"), 7, secret_text(), unsafe_local=True)


def test_a_station_measures_as_the_process_itself_does(
    unhurried: Challenge, store: VariantStore, tmp_path: Path
) -> None:
    """One line, all questions, a real model; what both say agrees where it isn't a speed."""
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    far = FarEvaluator(partial(ProcessLine, assignment(unhurried)), store.read)
    local = open_places(
        parse_executor("local"), unhurried, store, tmp_path, seed=7, unsafe_local=True
    )
    with local as bench:
        try:
            assert far.site().hardware == detect_hardware()
            shape, num_documents = far.bench()
            assert (shape, num_documents) == (bench.shape, bench.num_documents)
            far.smoke(seed.id)
            there = list(far.pairs(seed.id, places.BASELINE, Stage.BASELINE, {0: 0, 1: 0}))
            here = list(
                bench.evaluator.pairs(seed.id, places.BASELINE, Stage.BASELINE, {0: 0, 1: 0})
            )
            assert [p.prompts for p in there] == [p.prompts for p in here]
            assert [p.order for p in there] == [p.order for p in here]
            assert [p.tokens for p in there] == [p.tokens for p in here]
            for split in Split:  # held-out documents too: the secret is the same one
                mine = list(bench.evaluator.scores(seed.id, split, ()))
                assert list(far.scores(seed.id, split, ())) == mine
            with pytest.raises(EngineFailedError, match="broken on purpose"):
                far.smoke(places.broken(store).id)
        finally:
            far.close()


def test_a_station_that_is_killed_is_lost_and_then_another(
    unhurried: Challenge, store: VariantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", places.HELPERS)
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    lines: list[ProcessLine] = []

    def connect() -> ProcessLine:
        lines.append(ProcessLine(assignment(unhurried), make=places.make_waiting))
        return lines[-1]

    far = FarEvaluator(connect, store.read)
    try:
        series = far.pairs(seed.id, places.BASELINE, Stage.SCREEN, dict.fromkeys(range(8), 0))
        first = next(series)
        os.kill(lines[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match=r"ended \(exit -9\)"):
            list(series)
        assert first.index == 0
        rest = list(far.pairs(seed.id, places.BASELINE, Stage.SCREEN, {1: 0}))
        assert [pair.index for pair in rest] == [1]
        assert len(lines) == 2
    finally:
        far.close()
    assert lines[1]._process.poll() is not None


def test_a_series_that_is_left_in_the_middle_frees_the_station(
    unhurried: Challenge, store: VariantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", places.HELPERS)
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    far = FarEvaluator(
        partial(ProcessLine, assignment(unhurried), make=places.make_waiting), store.read
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
    unhurried: Challenge, store: VariantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = iter(["here", "elsewhere"])
    real = FarEvaluator.site

    def site(self: FarEvaluator):  # type: ignore[no-untyped-def]
        found = real(self)
        hardware = type(found.hardware)(next(kinds), 2, 8.0, (), True)
        return type(found)(hardware, True, "")

    monkeypatch.setattr(FarEvaluator, "site", site)
    lines = [partial(ProcessLine, assignment(unhurried))] * 2
    opened = far_places(lines, store)  # type: ignore[arg-type]
    differ = r"places differ: here \(2 cores.*and elsewhere"
    with pytest.raises(SlipstreamError, match=differ), opened:
        pass


@pytest.mark.parametrize("text", ["moon", "local:x", "hf_jobs", "local:-1"])
def test_an_unknown_executor_is_named(text: str) -> None:
    with pytest.raises(SlipstreamError, match=f"executor '{text}': use local"):
        parse_executor(text)


def test_a_cpu_has_one_place(unhurried: Challenge, store: VariantStore, tmp_path: Path) -> None:
    opened = open_places(parse_executor("local:2"), unhurried, store, tmp_path, seed=1)
    with pytest.raises(SlipstreamError, match="a measurement takes all cores"), opened:
        pass


@pytest.mark.parametrize(
    ("wanted", "shown", "expected"),
    [("local", "3,5", ["3", "5"]), ("local:1", "3,5", ["3"]), ("local", "GPU-a,GPU-b,-1", 2)],
)
def test_each_gpu_gets_a_worker_by_the_name_that_cuda_has_for_it(
    unhurried: Challenge,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    shown: str,
    expected: list[str] | int,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    on_gpus = unhurried.model_copy(update={"device": "cuda"})
    found = executors._gpus(parse_executor(wanted), on_gpus)
    assert found == expected or len(found) == expected


def test_more_gpus_than_there_are_is_an_error(
    unhurried: Challenge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    on_gpus = unhurried.model_copy(update={"device": "cuda"})
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
