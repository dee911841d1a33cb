"""One interleaved pair of timed blocks: A B B A, both engines warm, order drawn at random.

A drift of the machine that is linear over the pair cancels: each engine has the same mean position
in time. Both engines get the same two prompts, so their lengths cancel too; no engine gets a prompt
twice, so that remembering answers is of no use.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from .challenge import MOST_SCREEN_PAIRS
from .conditions import Conditions, Watch
from .engine import Engine
from .prompts import Prompt

MAX_ATTEMPTS = 3  # a machine that is never quiet still gets its pairs, and its log says so


class Stage(StrEnum):
    """What a pair was measured for."""

    NOISE = "noise"  # an engine against itself
    BASELINE = "baseline"  # against transformers
    SCREEN = "screen"
    TEST = "test"
    CONFIRM = "confirm"
    LOOK = "look"  # out of curiosity, after the verdict


@dataclass(frozen=True)
class Pair:
    """Speeds of one pair, in output tokens per second, prefill included.

    Attributes:
        prompts: names of the two prompts, in the order of the candidate's blocks.
        order: "ABBA" or "BAAB"; A is the candidate.
        tokens: what the candidate decoded in each of its blocks, to be audited.
        conditions: the machine while the pair was measured.
        attempt: how often this pair was measured before and found disturbed.
        void: why it doesn't count; empty if it does.
    """

    stage: Stage
    index: int
    prompts: tuple[str, ...]
    order: str
    tps: float
    tps_rival: float
    tokens: tuple[tuple[int, ...], ...] = ()
    conditions: Conditions = field(default_factory=Conditions)
    attempt: int = 0
    void: str = ""

    @property
    def log_ratio(self) -> float:
        """log(candidate ÷ rival)."""
        return math.log(self.tps / self.tps_rival)


# The test goes on with the deck where screening, which uses the same one, has left it at most.
_PAIRS_BEFORE = {Stage.TEST: MOST_SCREEN_PAIRS}


@dataclass(frozen=True)
class PairPlan:
    """Which prompts and order pair `index` of a stage gets; the same plan after a restart.

    Attributes:
        race: who races whom; another race gets other prompts.
        num_tokens: new tokens per block; each engine decodes two blocks.
    """

    stage: Stage
    prompts: Sequence[Prompt]
    seed: int
    race: str
    num_tokens: int

    def at(self, index: int, attempt: int = 0) -> tuple[tuple[Prompt, Prompt], str]:
        """Return prompts and order of one pair.

        Prompts are dealt from a shuffled deck that mixes variations of all kinds; while it lasts,
        no prompt is dealt twice in a race, screening, testing and further attempts taken together:
        those are dealt from the other end. Orders come in twos, one of each, so that a stage is
        balanced.
        """
        deck = self._rng("deck").permutation(len(self.prompts))
        flips = self._rng(f"order {self.stage} {attempt}").integers(0, 2, 4096)
        first = bool(flips[index // 2 % len(flips)]) ^ bool(index % 2)
        place = index + _PAIRS_BEFORE.get(self.stage, 0)
        if attempt:
            place = -1 - ((MAX_ATTEMPTS - 1) * place + attempt - 1)
        one, two = (self.prompts[deck[(2 * place + k) % len(deck)]] for k in range(2))
        return (one, two), "ABBA" if first else "BAAB"

    def _rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *f"{purpose} {self.race}".encode()])


def warm_up(engine: Engine, prompt: Prompt, num_tokens: int) -> None:
    """Let an engine compile, allocate and fill its caches before anything is timed."""
    for length in (4, 16):
        engine.generate(prompt.tokens, min(length, num_tokens))


def measure_pair(
    candidate: Engine,
    rival: Engine,
    plan: PairPlan,
    index: int,
    watch: Watch,
    *,
    attempt: int = 0,
) -> Iterator[Pair]:
    """Time one pair; again, on other prompts, as long as the machine is disturbed.

    Args:
        attempt: how many attempts at this pair were void already.

    Yields:
        The void attempts, if any, then the pair that counts.

    Raises:
        EngineError: one of the engines failed or broke the protocol.
    """
    while True:
        pair = _time(candidate, rival, plan, index, attempt, watch)
        attempt += 1
        if attempt >= MAX_ATTEMPTS:
            pair = replace(pair, void="")
        yield pair
        if not pair.void:
            return


def _time(
    candidate: Engine,
    rival: Engine,
    plan: PairPlan,
    index: int,
    attempt: int,
    watch: Watch,
) -> Pair:
    prompts, order = plan.at(index, attempt)
    engines = {"A": candidate, "B": rival}
    spent = {"A": 0.0, "B": 0.0}
    blocks: dict[str, list[tuple[int, ...]]] = {"A": [], "B": []}
    watch.start(lambda: candidate.cpu_s() + rival.cpu_s())
    for letter in order:
        prompt = prompts[len(blocks[letter])]
        generation = engines[letter].generate(prompt.tokens, plan.num_tokens)
        spent[letter] += generation.duration_s
        blocks[letter].append(generation.tokens)
    conditions = watch.stop()
    return Pair(
        stage=plan.stage,
        index=index,
        prompts=tuple(prompt.id for prompt in prompts),
        order=order,
        tps=2 * plan.num_tokens / spent["A"],
        tps_rival=2 * plan.num_tokens / spent["B"],
        tokens=tuple(blocks["A"]),
        conditions=conditions,
        attempt=attempt,
        void=watch.verdict(conditions),
    )
