"""What the planner is raced against: searches that are simple, and not bad at it.

Each satisfies `Planner` and proposes settings of the table that weren't tried in its run. Random
search draws every lever's value uniformly and draws again where the whole is impossible or known,
so a native step, which has fewer combinations, comes up far more often than by its share of them.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

from slipstream.agents.moves import KnowingBriefing, Move, move_to, single_moves
from slipstream.agents.moves import is_allowed as allowed
from slipstream.agents.roles import Briefing, Proposal

_DRAWS = 10_000


class RandomSearch:
    """Uniformly drawn settings; with `best_of`, the one of so many that the roofline favours."""

    def __init__(self, values: Mapping[str, tuple[str, ...]], seed: int, best_of: int = 1) -> None:
        self.name = "random" if best_of == 1 else f"best of {best_of}"
        self._values, self._best_of = values, best_of
        self._rng = random.Random(seed)

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        known = _forgetful(briefing)
        tried = _tried(KnowingBriefing(**vars(briefing)))
        found = []
        for _ in range(count):
            drawn = [move for _ in range(self._best_of) if (move := self._draw(known, tried))]
            if not drawn:
                break
            best = max(drawn, key=lambda move: move.prediction.gain)
            tried.add(known.key_of(best.settings))
            found.append(_proposal(best))
        return found

    def _draw(self, briefing: KnowingBriefing, tried: set[tuple[str, ...]]) -> Move | None:
        for _ in range(_DRAWS):
            drawn = {name: self._rng.choice(values) for name, values in self._values.items()}
            if briefing.key_of(drawn) in tried:
                continue
            champion = briefing.champion_settings
            move = move_to(briefing, {k: v for k, v in drawn.items() if champion[k] != v})
            if allowed(move, briefing):
                return move
        return None


class Greedy:
    """Always the change of one lever that the roofline predicts best, unless it was refuted."""

    name = "greedy"

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        known = KnowingBriefing(**vars(replace(briefing, corrections={}, ledger=())))
        moves = single_moves(known, _tried(known))
        best = sorted(moves, key=lambda move: -move.prediction.gain)
        return [_proposal(move) for move in best[:count]]


def _forgetful(briefing: Briefing) -> KnowingBriefing:
    """Return a briefing without trials: a random search learns from the champion alone."""
    nothing = replace(briefing, trials=(), corrections={}, ledger=())
    return KnowingBriefing(**vars(nothing))


def _tried(briefing: KnowingBriefing) -> set[tuple[str, ...]]:
    known = [trial.settings for trial in briefing.trials]
    return {briefing.key_of(s) for s in (*known, *briefing.planned, briefing.champion_settings)}


def _proposal(move: Move) -> Proposal:
    return Proposal(
        "+".join(move.changed), move.settings, move.prediction.arithmetic, move.prediction.gain
    )
