"""Experiments as jobs of the Hub: the client is the real one, and the jobs really run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, upload_session
from instant import InstantEvaluator
from loops import Fixed
from places import BASELINE
from tiny_challenge import TINY

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.collab import rented
from slipstream.collab.flavors import find_flavor
from slipstream.collab.hub import Hub
from slipstream.evaluation.acceptance import Cause, Evidence, Need, Verdict
from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.plans import (
    BeginLine,
    EndLine,
    PairLine,
    Plan,
    ScoreLine,
    Step,
    carry_out,
    print_line,
    read_line,
)
from slipstream.evaluation.prompts import Split
from slipstream.graph.opening import Agents
from slipstream.graph.session import new_run, resume
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory.costs import Costs
from slipstream.memory.jobs import CANCELLED, DONE, RUNNING, Job, Jobs, QuotaError
from slipstream.memory.records import RunState
from slipstream.memory.store import Memory, open_memory


@pytest.fixture
def hub(
    home: Path, shared_home: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    monkeypatch.setattr(rented, "ASK_EVERY_S", 0.2)
    shutil.copytree(shared_home / "models", home / "models")
    with FakeHub(shared_home) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(
            "huggingface_hub.utils._xet.get_xet_session", lambda: upload_session(made.url)
        )
        yield made


@pytest.fixture
def memory(home: Path) -> Iterator[Memory]:
    with open_memory() as made:
        yield made


@pytest.fixture
def challenge() -> Challenge:
    quick = TINY.replace("audit_blocks = 3", "audit_blocks = 1\nmax_disturbance = 100.0")
    return parse_challenge(f"{quick}\n[jobs]\nscreen_here = false\n", source="tiny")


@pytest.fixture
def plain(challenge: Challenge) -> Challenge:
    """The same without quality: half of the processes."""
    quality = challenge.quality.model_copy(update={"enabled": False})
    return challenge.model_copy(update={"quality": quality})


def start(memory: Memory, challenge: Challenge, **wishes: object) -> str:
    wishes = {"experiments": 1, "executor": "hf-jobs:cpu-basic", **wishes}
    return new_run(challenge, memory, seed=3, **wishes).id  # type: ignore[arg-type]


def agents(*changes: dict[str, str]) -> Agents:
    return Agents(Fixed(*changes), OfflineCoder(), OfflineBenchmarker())


def test_a_run_whose_measurements_are_jobs(
    hub: FakeHub, memory: Memory, challenge: Challenge
) -> None:
    run = start(memory, challenge)
    outcome = resume(run, memory, agents=agents({"fuse": "qkv"}))
    assert outcome.run.state is RunState.FINISHED
    (race,) = [e for e in memory.experiments(run=run) if e.hypothesis]
    assert race.verdict not in (None, Verdict.FAILED)
    assert memory.evidence(race.id).pairs
    # One job for the start, one for the experiment, one more if there was a champion to verify.
    jobs = Jobs(memory.database).of_run(run)
    assert [job.experiment for job in jobs][:2] == [f"{run}-000", race.id]
    assert {job.state for job in jobs} == {DONE}
    assert all(0 <= job.usd < 0.05 for job in jobs)
    assert Costs(memory.database).usd(run) == pytest.approx(sum(job.usd for job in jobs))
    # Nothing in a job is a secret of the account's, and its errand can't be written to.
    for spec in hub.specs:
        assert "secrets" not in spec
        assert TOKEN not in json.dumps(spec)
        assert [v.get("readOnly") for v in spec["volumes"]] == [True, None]
        assert spec["timeoutSeconds"] == 1200
    assert hub.specs[0]["flavor"] == "cpu-basic"
    assert memory.run(run).machine_label.startswith("hf-jobs cpu-basic")
    rungs = {rung.rung: rung for rung in memory.rungs(race.id)}
    assert rungs["tiny input"].outcome == "passed"
    assert rungs["job"].usd is not None
    assert not hub.running()


class Driving:
    """A run in a process of its own, which can be killed."""

    def __init__(self, run: str, hub: FakeHub) -> None:
        code = (
            "import sys; from huggingface_hub.utils import _xet; from fake_hub import "
            "upload_session; from slipstream.collab import rented; rented.ASK_EVERY_S = 0.2\n"
            f"_xet.get_xet_session = lambda: upload_session({hub.url!r})\n"
            "from slipstream.graph.session import resume\n"
            "from slipstream.graph.opening import Agents\n"
            "from slipstream.memory.store import open_memory\nfrom loops import Fixed\n"
            "agents = Agents(planner=Fixed({'fuse': 'qkv'}))\n"
            f"print(resume({run!r}, open_memory(), agents=agents).stop)\n"
        )
        helpers = str(Path(__file__).resolve().parent.parent / "helpers")
        given = os.environ | {"PYTHONPATH": helpers}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=given)


def wait_for(what: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_slipstream_finds_its_job_again(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    run = start(memory, plain)
    driving = Driving(run, hub)
    wait_for(lambda: any(job.state == RUNNING for job in Jobs(memory.database).of_run(run)))
    driving.process.send_signal(signal.SIGKILL)
    driving.process.wait()
    assert len(hub.specs) == 1
    assert hub.running()  # nobody was there to cancel it
    told: list[str] = []
    outcome = resume(
        run,
        memory,
        agents=agents({"fuse": "qkv"}),
        emit=lambda event: told.append(event.text),
    )
    assert outcome.run.state is RunState.FINISHED
    assert any("goes on" in text for text in told)
    assert [job.experiment for job in Jobs(memory.database).of_run(run)].count(f"{run}-000") == 1


def test_ctrl_c_cancels_the_job(hub: FakeHub, memory: Memory, plain: Challenge) -> None:
    hub.delay_s = 5.0
    run = start(memory, plain)
    driving = Driving(run, hub)
    wait_for(hub.running)
    wait_for(lambda: any(job.state == RUNNING for job in Jobs(memory.database).of_run(run)))
    driving.process.send_signal(signal.SIGINT)
    driving.process.wait(30)
    assert not hub.running()
    (job,) = Jobs(memory.database).of_run(run)
    assert job.state == "cancelled"
    assert memory.run(run).state is RunState.INTERRUPTED


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "401: the token is not valid; set HF_TOKEN"),
        (403, "403: the token may not do that"),
        (429, "429: too many requests; try again later"),
        (402, "402: the account has no credit"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(hub: FakeHub, status: int, advice: str) -> None:
    hub.fail["/api/jobs/ada"] = [status]
    ada = Hub()
    ada.upload("x", {"errand.json": b"{}"})
    with pytest.raises(SlipstreamError, match=f"job x: the Hub answers {advice}"):
        ada.submit("x", "cpu-basic", 60, "random:tiny-llama")
    assert not hub.specs


def test_a_job_that_was_not_submitted_costs_nothing_and_counts(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    hub.fail["/api/jobs/ada"] = [429]
    run = start(memory, plain)
    with pytest.raises(SlipstreamError, match="429: too many requests; try again later"):
        resume(run, memory, agents=agents({"fuse": "qkv"}))
    (job,) = Jobs(memory.database).of_run(run)
    assert job.state == "failed"
    assert Costs(memory.database).usd(run) == 0.0


def test_jobs_that_fail_end_the_run_after_three(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    hub.break_scripts = True
    run = start(memory, plain)
    with pytest.raises(SlipstreamError, match=r"3 jobs of .*-000 ended.*'ERROR: exit code 3'"):
        resume(run, memory, agents=agents({"fuse": "qkv"}))
    assert len(hub.specs) == 3


def test_no_job_is_submitted_that_the_budget_does_not_cover(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    run = start(memory, plain, usd=0.005, executor="hf-jobs:a10g-small")
    told = (
        r"a job on a10g-small may cost \$0\.33, \$0\.33 more are for the verification, and of the"
    )
    with pytest.raises(SlipstreamError, match=told):
        resume(run, memory, agents=agents({"fuse": "qkv"}))
    assert not hub.specs


def test_a_quota_survives_a_restart_and_holds_between_processes(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    terms = plain.jobs.model_copy(update={"per_day": 2})
    limited = plain.model_copy(update={"jobs": terms})
    other = start(memory, limited)
    for number in range(2):  # of another run, in another process: only the account counts
        Jobs(memory.database).reserve(Job(f"x-{number}", other, "x", "ada", "cpu-basic", 0.1), 2)
    run = start(memory, limited)
    with pytest.raises(QuotaError, match=r"2 jobs of ada were begun within 24 hours.*24\.0 hours"):
        resume(run, memory, agents=agents({"fuse": "qkv"}))
    assert not hub.specs
    # The same one again is not another.
    Jobs(memory.database).reserve(Job("x-0", other, "x", "ada", "cpu-basic", 0.1), 2)


def test_an_engine_that_fails_there_gets_its_verdict_here(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    class Breaking(OfflineCoder):
        def implement(self, hypothesis, parent, bench):  # type: ignore[no-untyped-def]
            tree = super().implement(hypothesis, parent, bench)
            files = dict(tree.files)
            files["engine/__init__.py"] += b"\nimport os\nif os.cpu_count(): raise OSError('no')\n"
            return type(tree)(files)

    run = start(memory, plain, unsafe_local=True)
    resume(run, memory, agents=Agents(Fixed({"fuse": "qkv"}), Breaking(), OfflineBenchmarker()))
    (race,) = [e for e in memory.experiments(run=run) if e.hypothesis]
    assert (race.verdict, race.cause) == (Verdict.FAILED, Cause.ENGINE)
    (tiny,) = [rung for rung in memory.rungs(race.id) if rung.rung == "tiny input"]
    assert tiny.outcome == "refused"
    assert len(hub.specs) == 1  # no machine was rented for what fails on a tiny input


def test_a_hub_that_is_away_for_a_while_costs_no_job(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    """Jobs that were cancelled don't count against the experiment either."""
    run = start(memory, plain)
    jobs = Jobs(memory.database)
    for number in range(3):
        name = f"{run}-000-{number}"
        jobs.reserve(Job(name, run, f"{run}-000", "ada", "cpu-basic", 0.1, f"r{number}"), 20)
        jobs.change(name, state=CANCELLED, usd=0.0)
    hub.fail["/api/jobs/ada/job"] = [503, 503]
    told: list[str] = []
    outcome = resume(
        run, memory, agents=agents({"fuse": "qkv"}), emit=lambda event: told.append(event.text)
    )
    assert outcome.run.state is RunState.FINISHED
    assert sum("answers 503" in text and "is asked again" in text for text in told) == 2
    assert {job.state for job in jobs.of_run(run)} == {CANCELLED, DONE}


def test_a_line_that_was_cut_off_is_no_result() -> None:
    whole = print_line(EndLine(3))
    assert read_line(whole) == EndLine(3)
    assert read_line(whole[:-2]) is None


def test_a_plan_whose_first_steps_are_done_goes_on_with_the_rest(memory: Memory) -> None:
    """As after a job that ended in the middle of a run's start."""
    store = VariantStore(data_dir() / "variants")
    seed = seed_tree(SEED_SETTINGS)
    store.add(seed)
    evaluator = InstantEvaluator(store.read)
    noise, baseline = (Need(stage=s, count=2) for s in (Stage.NOISE, Stage.BASELINE))
    plan = Plan("x", seed.id, BASELINE, steps=(Step(seed.id, noise), Step(BASELINE, baseline)))
    lines = list(carry_out(plan, evaluator))
    known = Evidence(tuple(one.value for one in lines[:2] if isinstance(one, PairLine)))
    again = list(carry_out(replace(plan, evidence=known), evaluator))
    assert [one.value.stage for one in again if isinstance(one, PairLine)] == [Stage.BASELINE] * 2
    assert len(again) == 2


def test_what_is_clearly_slower_here_is_not_sent(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    """Real engines on this machine; one of them sleeps before each answer."""

    class Slowing(OfflineCoder):
        def implement(self, hypothesis, parent, bench):  # type: ignore[no-untyped-def]
            tree = super().implement(hypothesis, parent, bench)
            if hypothesis.target != "fuse=qkv":
                return tree
            files = dict(tree.files)
            files["engine/__init__.py"] += (
                b"\nimport time\n_real = Engine.generate\ndef _slow(self, *given):\n"
                b"    time.sleep(0.2)\n    return _real(self, *given)\nEngine.generate = _slow\n"
            )
            return type(tree)(files)

    terms = plain.jobs.model_copy(update={"screen_here": True})
    both = plain.model_copy(update={"jobs": terms})
    run = start(memory, both, experiments=2, unsafe_local=True)
    planner = Fixed({"fuse": "qkv"}, {"threads": "1"})
    resume(run, memory, agents=Agents(planner, Slowing(), OfflineBenchmarker()))
    found = {memory.hypothesis(e.id).target: e for e in memory.experiments(run=run) if e.hypothesis}
    slow, other = found["fuse=qkv"], found["threads=1"]
    rungs = {rung.rung: rung for rung in memory.rungs(slow.id)}
    assert (slow.verdict, slow.cause) == (Verdict.REJECTED, Cause.SCREENED), rungs["local screen"]
    assert slow.reason.startswith("local screen: -")
    assert rungs["local screen"].outcome == "refused"
    assert "job" not in rungs
    rungs = {rung.rung: rung for rung in memory.rungs(other.id)}
    assert rungs["local screen"].outcome in ("passed", "refused")
    if other.cause is not Cause.SCREENED:
        assert "projected from" in rungs["projection"].reason
    sent = {job.experiment for job in Jobs(memory.database).of_run(run)}
    assert slow.id not in sent


def test_a_job_on_another_gpu_than_the_flavor_has_is_refused(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    run = start(memory, plain, executor="hf-jobs:a10g-small")  # the fake's jobs run on this CPU
    with pytest.raises(SlipstreamError, match=r"job \S+ runs on .*; a10g-small has NVIDIA A10G, "):
        resume(run, memory, agents=agents({"fuse": "qkv"}))
    assert not hub.running()
    assert not memory.evidence(f"{run}-000").pairs


def test_a_drafter_is_refused_before_a_job_is_paid_for(
    hub: FakeHub, memory: Memory, plain: Challenge
) -> None:
    drafted = plain.model_copy(update={"drafter": "random:tiny-llama"})
    run = start(memory, drafted)
    with pytest.raises(SlipstreamError, match="jobs of the Hub don't carry drafter 'random:tiny-"):
        resume(run, memory, agents=agents({"fuse": "qkv"}))
    assert not hub.specs


def test_a_log_with_a_gap_is_not_whole() -> None:
    score = ScoreLine(Split.PUBLIC, DocumentScore("d", 3, 1.0, 1.0, 0.0, 3))
    begin = BeginLine("this")
    assert rented._whole([begin, score, EndLine(1)])
    assert not rented._whole([begin, EndLine(1)])
    assert not rented._whole([begin, score])
    assert not rented._whole([])


def test_without_a_token_nothing_begins(
    home: Path, memory: Memory, plain: Challenge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SlipstreamError, match="no token for the Hub; set HF_TOKEN"):
        Hub()


def test_an_unknown_flavor_names_the_known_ones() -> None:
    with pytest.raises(SlipstreamError, match=r"hf-jobs:b200: known flavors are a10g-small, "):
        find_flavor("b200")


def test_begun_minutes_count() -> None:
    assert find_flavor("a10g-small").usd(61) == pytest.approx(2 / 60)
