"""Pairs are interleaved, balanced, and the same after a restart."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from slipstream.evaluation.challenge import MOST_SCREEN_PAIRS
from slipstream.evaluation.conditions import Conditions, Watch
from slipstream.evaluation.engine import Generation
from slipstream.evaluation.pairs import MAX_ATTEMPTS, PairPlan, Stage, measure_pair
from slipstream.evaluation.prompts import Prompt, Split

PROMPTS = [Prompt(f"p{i}", "chat", Split.PUBLIC, (1, 2, i)) for i in range(6)]


class Clockwork:
    """An engine whose blocks take as long as a shared, drifting clock says."""

    vocab_size = 10

    def __init__(self, name: str, cost_s: float, log: list[str]) -> None:
        self.name, self.cost_s, self.log = name, cost_s, log

    def generate(self, prompt: Sequence[int], num_tokens: int) -> Generation:
        self.log.append(self.name)
        drift = 1 + 0.1 * len(self.log)  # the machine gets slower and slower
        return Generation((0,) * num_tokens, self.cost_s * drift)

    def cpu_s(self) -> float:
        return 0.0


class Quiet(Watch):
    """A machine that is disturbed as often as it is told to be."""

    def __init__(self, disturbed: int = 0) -> None:
        super().__init__(gpu=False, max_disturbance=0.1)
        self.disturbed = disturbed

    def stop(self) -> Conditions:
        self.disturbed -= 1
        return Conditions(others=0.6 if self.disturbed >= 0 else 0.0)


def plan(stage: Stage, seed: int, race: str = "a:b") -> PairPlan:
    return PairPlan(stage, PROMPTS, seed, race, 10)


@pytest.mark.parametrize("index", range(4))
def test_linear_drift_cancels(index: int) -> None:
    log: list[str] = []
    a, b = Clockwork("A", 1.0, log), Clockwork("B", 2.0, log)
    (pair,) = measure_pair(a, b, plan(Stage.TEST, 1), index, Quiet())  # type: ignore[arg-type]
    assert "".join(log) == pair.order
    assert pair.order in ("ABBA", "BAAB")
    assert np.exp(pair.log_ratio) == pytest.approx(2.0)
    assert len(set(pair.prompts)) == 2
    assert pair.tokens == ((0,) * 10, (0,) * 10)


def test_disturbed_pairs_are_void_and_measured_again_on_other_prompts() -> None:
    a, b = Clockwork("A", 1.0, []), Clockwork("B", 2.0, [])
    pairs = list(measure_pair(a, b, plan(Stage.TEST, 1), 0, Quiet(1)))  # type: ignore[arg-type]
    assert [pair.attempt for pair in pairs] == [0, 1]
    assert pairs[0].void == "others used 60% of the cores, 10% is allowed"
    assert pairs[1].void == ""
    assert pairs[0].prompts != pairs[1].prompts


def test_void_attempts_of_before_a_restart_count() -> None:
    a, b = Clockwork("A", 1.0, []), Clockwork("B", 2.0, [])
    again = measure_pair(a, b, plan(Stage.TEST, 1), 0, Quiet(99), attempt=1)  # type: ignore[arg-type]
    assert [(pair.attempt, bool(pair.void)) for pair in again] == [(1, True), (2, False)]


def test_machine_that_is_never_quiet_gets_its_pair_all_the_same() -> None:
    a, b = Clockwork("A", 1.0, []), Clockwork("B", 2.0, [])
    pairs = list(measure_pair(a, b, plan(Stage.TEST, 1), 0, Quiet(99)))  # type: ignore[arg-type]
    assert [bool(pair.void) for pair in pairs] == [True, True, False]
    assert pairs[-1].conditions.others == 0.6


def test_orders_are_balanced_and_prompts_dealt_without_repeats() -> None:
    drawn = [plan(Stage.CONFIRM, 3).at(index) for index in range(6)]
    assert Counter(order for _, order in drawn) == {"ABBA": 3, "BAAB": 3}
    ids = Counter(prompt.id for prompts, _ in drawn for prompt in prompts)
    assert set(ids.values()) == {2}  # 12 blocks from a deck of 6
    first = [prompt.id for prompts, _ in drawn[:3] for prompt in prompts]
    assert len(set(first)) == 6


def test_no_prompt_is_dealt_twice_in_a_race() -> None:
    """An engine that remembers answers would gain from a prompt that it had seen."""
    prompts = [Prompt(f"p{i}", "chat", Split.PUBLIC, (i,)) for i in range(288)]
    dealt = [
        prompt.id
        for stage, count in ((Stage.SCREEN, MOST_SCREEN_PAIRS), (Stage.TEST, 32))
        for index in range(count)
        for attempt in range(MAX_ATTEMPTS)
        for prompt in PairPlan(stage, prompts, 3, "a:b", 10).at(index, attempt)[0]
    ]
    assert len(set(dealt)) == len(dealt) == 2 * (16 + 32) * 3


def test_plan_is_the_same_after_a_restart_and_differs_by_stage_seed_and_race() -> None:
    def draw(stage: Stage, seed: int, race: str = "a:b") -> list[tuple[list[str], str]]:
        drawn = map(plan(stage, seed, race).at, range(12))
        return [([prompt.id for prompt in prompts], order) for prompts, order in drawn]

    assert draw(Stage.TEST, 7) == draw(Stage.TEST, 7)
    assert draw(Stage.TEST, 7) != draw(Stage.TEST, 8)
    assert draw(Stage.TEST, 7) != draw(Stage.SCREEN, 7)
    assert draw(Stage.TEST, 7) != draw(Stage.TEST, 7, "a:c")
