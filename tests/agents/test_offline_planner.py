"""The offline planner: byte arithmetic first, memory heeded, exploration kept up."""

from dataclasses import replace

import pytest

from slipstream.agents.moves import KnowingBriefing
from slipstream.agents.offline_planner import EXPLORE_EVERY, OfflinePlanner
from slipstream.agents.roles import Briefing, Island, Proposal, Trial
from slipstream.agents.roofline import predict
from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.challenge import load_challenge
from slipstream.kernels.catalogue import SHIPPED, read_catalogue
from slipstream.kernels.census import ModelShape
from slipstream.kernels.fit import refusal
from slipstream.kernels.levers import SEED_SETTINGS, Machine
from slipstream.memory.duplicates import REOPEN_SPEEDUP
from slipstream.memory.ledger import Correction, LedgerEntry

SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 64, 49152, "llama")
LAPTOP = Machine("cpu", 2, has_compiler=True)
NATIVE_SETTINGS = {**SEED_SETTINGS, "step": "native"}
FRESH = Briefing("c", SMOLLM2, LAPTOP, 28.0, "seed", SEED_SETTINGS, 50.0, (), (), 1)
# Its step is fused already: what is left are the bytes.
NATIVE = replace(FRESH, champion_settings=NATIVE_SETTINGS)


def trial(verdict: Verdict, cause: Cause, rival_tps: float = 50.0, **changed: str) -> Trial:
    excess = 0.3 if cause is Cause.QUALITY else -0.01
    return Trial({**SEED_SETTINGS, **changed}, changed, verdict, cause, 0.3, excess, rival_tps)


def first(briefing: Briefing) -> Proposal:
    return OfflinePlanner().plan(briefing, 1)[0]


def changed(proposal: Proposal, briefing: Briefing) -> dict[str, str]:
    champion = briefing.champion_settings
    return {k: v for k, v in proposal.settings.items() if champion[k] != v}


def test_begins_with_the_step_and_then_with_what_saves_most_bytes() -> None:
    assert changed(first(FRESH), FRESH) == {"step": "native"}
    proposal = first(NATIVE)
    assert changed(proposal, NATIVE) == {"weights": "int4-g64"}
    assert proposal.predicted_gain > 0.2
    assert "MB a token instead of" in proposal.mechanism


def test_where_nobody_judges_quality_all_that_rounds_comes_in_one_move() -> None:
    """On a GPU quantised matrices need the fused step: one by one they can't be proposed at all."""
    gpu = Machine("cuda", 16, has_compiler=True)
    shape = ModelShape(2560, 10240, 42, 8, 2, 256, 262144, "llama")
    judged = replace(FRESH, shape=shape, machine=gpu, bandwidth_gbps=3000.0, champion_tps=30.0)
    assert not {"weights", "head"} & set(changed(first(judged), judged))
    rules = load_challenge("gemma4-e4b-random")
    assert not rules.quality.enabled
    free = replace(judged, rules=rules)
    found = changed(first(free), free)
    assert found["step"] == "graph"
    assert found["weights"].startswith("int4")
    assert found["head"].startswith("int4")
    assert refusal(shape, {**SEED_SETTINGS, **found}, gpu) is None
    assert not {"vocab", "skip", "window", "draft", "compile"} & set(found)


def test_draws_only_what_can_work_on_this_machine() -> None:
    """Of somebody else's engine, whose levers may have the same names, all of it."""
    choices = KnowingBriefing(**vars(FRESH)).choices
    assert "kv" not in choices
    assert choices["cache"] == ("growing", "static")
    assert choices["draft"][-1] == "lookup-adaptive"
    served = read_catalogue("theirs", '[levers.kv]\nvalues = ["int8", "paged"]\nsummary = "x"')
    theirs = replace(KnowingBriefing(**vars(FRESH)), catalogue=served)
    assert theirs.choices == {"kv": ("int8", "paged")}


def test_names_no_lever_that_does_nothing_here() -> None:
    """A fused step leaves most others idle; a GPU needs no cores, and two cores of two are all."""
    gpu = Machine("cuda", 16, has_compiler=True)
    shape = ModelShape(2560, 10240, 42, 8, 2, 256, 262144, "llama")
    settings = {**SEED_SETTINGS, "step": "graph", "weights": "int4-g128"}
    on_gpu = replace(FRESH, shape=shape, machine=gpu, champion_settings=settings)
    idle = {"attention", "norm", "fuse", "compile", "activations"}
    for briefing, never in ((on_gpu, idle | {"threads"}), (NATIVE, idle - {"activations"})):
        plan = OfflinePlanner().plan(briefing, 30)
        named = [lever for proposal in plan for lever in proposal.lever.split("+")]
        assert len(plan) > 15
        assert any("+" in proposal.lever for proposal in plan)
        assert not never & set(named)
        assert all(proposal.settings["threads"] != "2" for proposal in plan)


def test_prediction_is_the_arithmetic() -> None:
    """int8 weights save half of 212 MB: at 28 GB/s that is 3.8 of 20 ms."""
    then = {**SEED_SETTINGS, "weights": "int8"}
    found = predict(SMOLLM2, SEED_SETTINGS, then, tps=50.0, bandwidth_gbps=28.0, machine=LAPTOP)
    saved_s = 106.2e6 / 28e9
    assert found.gain == pytest.approx(0.02 / (0.02 - saved_s) - 1, rel=0.02)


def test_prediction_never_beats_the_roofline() -> None:
    then = {**SEED_SETTINGS, "weights": "int4-g64", "head": "int4-g64"}
    found = predict(SMOLLM2, SEED_SETTINGS, then, tps=99.0, bandwidth_gbps=28.0, machine=LAPTOP)
    bytes_then = 75e6
    assert 99.0 * (1 + found.gain) < 28e9 / bytes_then * 1.1


def test_lost_quality_is_not_tried_again_on_another_parent() -> None:
    lost = trial(Verdict.REJECTED, Cause.QUALITY, weights="int4-g64")
    later = replace(
        FRESH,
        champion_settings={**SEED_SETTINGS, "fuse": "qkv"},
        champion_tps=500.0,
        trials=(lost,),
    )
    for index in range(30):
        for proposal in OfflinePlanner().plan(replace(later, planned=({},) * index, seed=index), 1):
            assert proposal.settings["weights"] != "int4-g64"


def test_missing_gain_is_tried_again_once_the_champion_is_much_faster() -> None:
    flat = trial(Verdict.REJECTED, Cause.NO_GAIN, attention="grouped")
    champion = {**SEED_SETTINGS, "weights": "int4-g32", "head": "int8"}

    def tries(tps: float) -> bool:
        briefing = replace(FRESH, champion_settings=champion, champion_tps=tps, trials=(flat,))
        return any(
            changed(p, briefing) == {"attention": "grouped"}
            for p in OfflinePlanner().plan(briefing, 40)
        )

    assert not tries(50.0 * REOPEN_SPEEDUP - 1)
    assert tries(50.0 * REOPEN_SPEEDUP + 1)


def test_every_fourth_proposal_explores_a_lever_that_nobody_tried() -> None:
    known = tuple(
        trial(Verdict.REJECTED, Cause.NO_GAIN, **{name: value})
        for name, value in {"weights": "int8", "head": "int8", "fuse": "qkv"}.items()
    )
    briefing = replace(FRESH, trials=known, planned=({"cache": "static"},) * (EXPLORE_EVERY - 1))
    assert not set(changed(first(briefing), briefing)) & {"weights", "head", "fuse"}


def test_never_proposes_the_impossible_or_the_same_twice() -> None:
    proposals = OfflinePlanner().plan(FRESH, 60)
    keys = [str(sorted(p.settings.items())) for p in proposals]
    assert len(keys) == len(set(keys)) > 20
    assert str(sorted(SEED_SETTINGS.items())) not in keys
    assert all(refusal(SMOLLM2, p.settings, LAPTOP) is None for p in proposals)
    harmless = {"attention", "cache", "fuse", "norm", "step"}
    assert all(len(set(changed(p, FRESH)) - harmless) <= 2 for p in proposals)


def test_what_this_run_planned_already_is_not_proposed_again() -> None:
    refused = first(FRESH).settings
    assert first(replace(FRESH, planned=(refused,))).settings != refused


def test_same_seed_same_plan() -> None:
    assert OfflinePlanner().plan(FRESH, 20) == OfflinePlanner().plan(FRESH, 20)


def test_optuna_heeds_the_constraint() -> None:
    """Fast but infeasible int8 heads against slower feasible ones: TPE learns to avoid them."""
    trials = []
    for index in range(24):
        head = ("int8", "dense")[index % 2]
        settings = {**SEED_SETTINGS, "head": head, "threads": ("all", "1", "2")[index % 3]}
        excess = 0.5 if head == "int8" else -0.01
        speed = 1.0 if head == "int8" else 0.5
        trials.append(
            Trial(settings, {"head": head}, Verdict.REJECTED, Cause.POWER, speed, excess, 50.0)
        )
    planner = OfflinePlanner()
    study = planner._updated_study(replace(FRESH, trials=tuple(trials)))
    from slipstream.agents.offline_planner import _distributions

    asked = [study.ask(_distributions(SHIPPED.levers)).params["head"] for _ in range(30)]
    assert asked.count("int8") < 8


def entry(lever: str, value: str, **outcomes: int) -> LedgerEntry:
    counts = dict.fromkeys(("kept", "no_gain", "quality", "failed", "undecided"), 0) | outcomes
    return LedgerEntry(
        lever=lever,
        value=value,
        family="llama",
        machine="m",
        best=None,
        best_experiment=None,
        refuted_tps=None,
        mechanism="",
        reopen="",
        evidence=(),
        last_seen=1.0,
        **counts,
    )


def test_predictions_are_corrected_by_experience() -> None:
    assert first(NATIVE).lever == "weights"
    # Twenty times half of it came; of the bundle, all of it.
    disappointing = Correction("offline-planner", "weights", 20, 20 * 0.4, 20 * 0.02)
    told = replace(NATIVE, corrections={"weights": disappointing})
    proposals = OfflinePlanner().plan(told, 2)
    assert all(proposal.lever != "weights" for proposal in proposals)
    weights = Proposal("weights", {}, "", 0.0)
    for proposal in OfflinePlanner().plan(replace(told, planned=()), 12):
        if proposal.lever == "weights":
            weights = proposal
            break
    assert weights.prior_gain is not None
    expected = (1 + weights.prior_gain) ** disappointing.factor - 1
    assert weights.predicted_gain == pytest.approx(expected)
    assert weights.predicted_gain < weights.prior_gain


def test_what_the_ledger_speaks_against_comes_last_but_comes() -> None:
    assert changed(first(NATIVE), NATIVE) == {"weights": "int4-g64"}
    told = replace(NATIVE, ledger=(entry("weights", "int4-g64", quality=2),))
    proposals = OfflinePlanner().plan(told, 30)
    order = [changed(proposal, told) for proposal in proposals]
    weights = [change["weights"] for change in order if set(change) == {"weights"}]
    assert weights[0] == "int4-g32"  # 128 divides no 576
    assert {"weights": "int4-g64"} in order
    contested = replace(NATIVE, ledger=(entry("weights", "int4-g64", quality=2, kept=1),))
    assert changed(first(contested), contested) == {"weights": "int4-g64"}


def test_exploration_takes_the_lever_that_was_tried_least_elsewhere() -> None:
    levers = [name for name in SEED_SETTINGS if name != "norm"]
    known = tuple(entry(name, "x", no_gain=3) for name in levers)
    told = replace(FRESH, ledger=known, planned=({},) * (EXPLORE_EVERY - 1))
    assert first(told).lever == "norm"


def test_what_others_measure_now_is_not_proposed() -> None:
    begun = {**SEED_SETTINGS, "weights": "int4-g64"}
    assert changed(first(replace(FRESH, claimed=(begun,))), FRESH) != {"weights": "int4-g64"}


def test_now_and_then_it_goes_on_from_the_least_tried_island() -> None:
    there = {**SEED_SETTINGS, "fuse": "qkv", "cache": "static"}
    crowded = Island("aaa", {**SEED_SETTINGS, "norm": "layer-norm"}, 0.9, 40)
    lonely = Island("bbb", there, 0.8, 2)
    told = replace(FRESH, islands=(crowded, lonely), planned=({},) * (2 * EXPLORE_EVERY - 1))
    proposal = first(told)
    assert proposal.parent == "bbb"
    assert proposal.settings["cache"] == "static"
    new = {k: v for k, v in proposal.settings.items() if there[k] != v}
    assert proposal.lever == "+".join(new)
    # The race is against the champion: the island's arrears are part of the prediction.
    assert proposal.prior_gain is not None
    assert 1 + proposal.predicted_gain < 1 / 0.8
    assert first(replace(told, islands=())).parent is None


WORKED_ELSEWHERE = (
    entry("step", "native", kept=2),
    entry("weights", "int4-g32", kept=1),
    entry("weights", "int4-g64", quality=1),
    entry("head", "int8", kept=1),
    entry("head", "int4-g32", kept=1, quality=1),
)


def test_what_worked_elsewhere_comes_first_in_one_move() -> None:
    told = replace(FRESH, ledger=WORKED_ELSEWHERE)
    together = first(told)
    assert changed(together, told) == {"step": "native", "weights": "int4-g32", "head": "int8"}
    assert together.predicted_gain > first(FRESH).predicted_gain


def test_what_worked_elsewhere_is_not_repeated_once_it_is_known_here() -> None:
    there = {"step": "native", "weights": "int4-g32", "head": "int8"}
    lost = trial(Verdict.REJECTED, Cause.QUALITY, **there)
    refused = replace(FRESH, ledger=WORKED_ELSEWHERE, trials=(lost,))
    for proposal in OfflinePlanner().plan(refused, 20):
        assert not set(there.items()) <= set(proposal.settings.items())
    champion = replace(refused, trials=(), champion_settings={**SEED_SETTINGS, **there})
    assert len(changed(first(champion), champion)) == 1


def test_one_lever_that_worked_is_a_move_like_any() -> None:
    told = replace(FRESH, ledger=(entry("head", "int8", kept=1),))
    assert first(told) == first(FRESH)


def test_what_worked_is_not_talked_down_by_other_values_of_its_lever() -> None:
    useless = Correction("offline-planner", "weights", 9, 9 * 0.4, -9 * 0.4)
    told = replace(NATIVE, corrections={"weights": useless})
    assert changed(first(told), told).get("weights") is None
    worked = replace(told, ledger=(entry("weights", "int4-g32", kept=1),))
    assert changed(first(worked), worked) == {"weights": "int4-g32"}
