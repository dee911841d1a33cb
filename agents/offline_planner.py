"""The planner that needs no key: Optuna over the levers, seeded by byte arithmetic.

Each round it ranks moves from the champion by predicted gain: every single lever; one bundle of all
levers that can't touch quality, because each costs a whole experiment and none has a reason to
disturb another; and one of all that worked on other challenges of this family and machine.
Predicted gains are corrected by how earlier predictions came true. Every fourth proposal goes to
exploration: in turn a lever that nobody has tried, or what Optuna's TPE sampler makes of all trials
so far, with PPL as a constraint; and the next move of the least tried lineage.
"""

from collections.abc import Mapping
from dataclasses import replace

import optuna

from slipstream.evaluation.acceptance import Cause
from slipstream.kernels.catalogue import Catalogue
from slipstream.kernels.levers import Lever

from .moves import (
    KnowingBriefing,
    Move,
    bundle,
    is_allowed,
    mixture,
    move_to,
    reunion,
    single_moves,
)
from .roles import Briefing, Proposal, Trial

EXPLORE_EVERY = 4
_ISLAND_EVERY = 2 * EXPLORE_EVERY
_TRIES = 3

optuna.logging.set_verbosity(optuna.logging.ERROR)


class OfflinePlanner:
    """Satisfies `Planner`."""

    name = "offline-planner"

    def __init__(self) -> None:
        self._study: optuna.Study | None = None
        self._num_told = 0

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        """Return up to `count` proposals on the champion; none when nothing is left to try."""
        study = self._updated_study(briefing)
        known = KnowingBriefing(**vars(briefing))
        key_of = known.key_of
        tried = {key_of(trial.settings) for trial in briefing.trials}
        tried |= {key_of(settings) for settings in (*briefing.planned, *briefing.claimed)}
        tried.add(key_of(briefing.champion_settings))
        proposals: list[Proposal] = []
        while len(proposals) < count:
            index = len(briefing.planned) + len(proposals)
            explore = index % EXPLORE_EVERY == EXPLORE_EVERY - 1
            elsewhere = index % _ISLAND_EVERY == _ISLAND_EVERY - 1
            proposal = self._from_island(known, tried) if elsewhere else None
            if proposal is None:
                move = self._choose(study, known, tried, explore=explore)
                proposal = None if move is None else _proposal(move)
            if proposal is None:
                break
            tried.add(key_of(proposal.settings))
            proposals.append(proposal)
        return proposals

    def _from_island(
        self, briefing: KnowingBriefing, tried: set[tuple[str, ...]]
    ) -> Proposal | None:
        """Go on from the lineage that was tried least: what is best there may overtake."""
        for island in sorted(briefing.islands, key=lambda island: island.trials):
            there = replace(
                briefing,
                champion_settings=island.settings,
                champion_tps=briefing.champion_tps * island.speedup,
            )
            moves = sorted(single_moves(there, tried), key=there.rank)
            if moves and moves[0].gain > 0:
                return _proposal(moves[0], parent=island.best, head_start=island.speedup)
        return None

    def _choose(
        self,
        study: optuna.Study,
        briefing: KnowingBriefing,
        tried: set[tuple[str, ...]],
        *,
        explore: bool,
    ) -> Move | None:
        moves = sorted(single_moves(briefing, tried), key=briefing.rank)
        promising = [move for move in moves if move.gain > 0]
        for together in (bundle(briefing, moves), reunion(briefing, moves)):
            if together is not None and briefing.key_of(together.settings) not in tried:
                promising.append(together)
        promising.sort(key=briefing.rank)
        if explore or not promising:
            touched = {name for trial in briefing.trials for name in trial.changed}
            # A lever that nobody has touched here comes before a new mixture of known ones, and
            # among those, one that was tried least elsewhere.
            untouched = [move for move in moves if not touched & set(move.changed)]
            if untouched:
                return min(untouched, key=briefing.trials_of)
            sampled = self._sample(study, briefing, tried) or mixture(briefing, tried)
            return sampled or next(iter(moves), None)
        return promising[0]

    def _sample(
        self, study: optuna.Study, briefing: KnowingBriefing, tried: set[tuple[str, ...]]
    ) -> Move | None:
        """Ask TPE; of what it changes, pull two levers at most, so that a finding can name them."""
        for _ in range(_TRIES):
            trial = study.ask(_distributions(briefing.levers))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # judged trials are added whole
            wanted = {
                name: value
                for name, value in trial.params.items()
                if value != briefing.champion_settings[name]
                and value in briefing.choices.get(name, ())
            }
            single = [move_to(briefing, {name: value}) for name, value in wanted.items()]
            single.sort(key=lambda move: move.gain, reverse=True)
            changed = {name: v for move in single[:2] for name, v in move.changed.items()}
            changed = briefing.telling(changed)
            move = move_to(briefing, changed)
            if (
                changed
                and briefing.key_of(move.settings) not in tried
                and is_allowed(move, briefing)
            ):
                return move
        return None

    def _updated_study(self, briefing: Briefing) -> optuna.Study:
        """Return the study with every judged trial in it; only new ones are added."""
        if self._study is None or self._num_told > len(briefing.trials):
            sampler = optuna.samplers.TPESampler(seed=briefing.seed, n_startup_trials=8)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
            self._num_told = 0
        for trial in briefing.trials[self._num_told :]:
            if trial.speed is not None:
                self._study.add_trial(_frozen(trial, briefing.catalogue))
        self._num_told = len(briefing.trials)
        return self._study


def _proposal(move: Move, parent: str | None = None, head_start: float = 1.0) -> Proposal:
    """Make a proposal of a move.

    Args:
        parent: where it starts from, if not the champion.
        head_start: the parent's speed over the champion's.
    """
    return Proposal(
        lever="+".join(move.changed),
        settings=move.settings,
        mechanism=move.prediction.arithmetic,
        predicted_gain=(1 + move.gain) * head_start - 1,
        prior_gain=(1 + move.prediction.gain) * head_start - 1,
        parent=parent,
    )


def _distributions(
    levers: Mapping[str, Lever],
) -> dict[str, optuna.distributions.BaseDistribution]:
    return {
        name: optuna.distributions.CategoricalDistribution(lever.values)
        for name, lever in levers.items()
    }


def _frozen(trial: Trial, catalogue: Catalogue) -> optuna.trial.FrozenTrial:
    settings = {**catalogue.seed, **trial.settings}
    # A gate other than PPL's may have refused it: that is infeasible too.
    excess = max(trial.ppl_excess, 0.01) if trial.cause is Cause.QUALITY else trial.ppl_excess
    return optuna.trial.create_trial(
        params=settings,
        distributions=_distributions(catalogue.levers),
        value=trial.speed,
        constraints={"ppl": excess},  # feasible at zero and below
    )
