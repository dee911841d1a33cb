"""The planner that needs no key: Optuna over the levers, seeded by byte arithmetic.

Each round it ranks moves from the champion by predicted gain: every single lever, and one bundle of
all levers that can't touch quality, because each costs a whole experiment and none has a reason to
disturb another. Every fourth proposal goes to exploration: a lever that nobody has tried, or what
Optuna's TPE sampler makes of all trials so far, with PPL as a constraint.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import optuna

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.kernels.levers import CATALOGUE, SEED_SETTINGS, Lever, Risk, refusal

from .roles import Briefing, Proposal, Trial
from .roofline import Prediction, predict

EXPLORE_EVERY = 4
REOPEN_SPEEDUP = 1.5  # a move without gain is worth another try once the rest got this much faster
_TRIES = 3
_DRAWS = 300

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class _Move:
    settings: dict[str, str]
    changed: dict[str, str]
    prediction: Prediction


@dataclass(frozen=True)
class _Refutations:
    """What earlier trials say against moves.

    Lost quality, and an engine that fails, stay so with whatever else is pulled. A lack of gain
    holds for the very same levers, until the champion is so much faster that what they save has
    become a larger share.
    """

    hopeless: tuple[tuple[tuple[str, str], ...], ...]
    gainless: dict[tuple[tuple[str, str], ...], float]  # changed levers → the rival's speed then

    def speak_against(self, move: _Move, champion_tps: float) -> bool:
        settings = move.settings
        if any(all(settings[name] == value for name, value in bad) for bad in self.hopeless):
            return True
        rival_tps = self.gainless.get(_items(move.changed))
        return rival_tps is not None and champion_tps < REOPEN_SPEEDUP * rival_tps


def _refutations(trials: tuple[Trial, ...]) -> _Refutations:
    hopeless: dict[tuple[tuple[str, str], ...], None] = {}
    gainless: dict[tuple[tuple[str, str], ...], float] = {}
    for trial in trials:
        changed = _items(trial.changed)
        if not changed:
            continue
        if trial.cause is Cause.QUALITY or trial.verdict in (Verdict.FAILED, Verdict.INVALID):
            hopeless[changed] = None
        elif trial.verdict is Verdict.REJECTED:
            gainless[changed] = max(trial.rival_tps, gainless.get(changed, 0.0))
    return _Refutations(tuple(hopeless), gainless)


def _items(changed: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(changed.items()))


class _Knowing(Briefing):
    """A briefing that has thought about its trials once."""

    @cached_property
    def refutations(self) -> _Refutations:
        """What its trials speak against."""
        return _refutations(self.trials)


class OfflinePlanner:
    """Satisfies `Planner`."""

    name = "offline-planner"

    def __init__(self) -> None:
        self._study: optuna.Study | None = None
        self._num_told = 0

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        """Return up to `count` proposals on the champion; none when nothing is left to try."""
        study = self._updated_study(briefing)
        known = _Knowing(**vars(briefing))
        tried = {_key(trial.settings) for trial in briefing.trials}
        tried |= {_key(settings) for settings in briefing.planned}
        tried.add(_key(briefing.champion_settings))
        proposals: list[Proposal] = []
        while len(proposals) < count:
            index = len(briefing.planned) + len(proposals)
            explore = index % EXPLORE_EVERY == EXPLORE_EVERY - 1
            move = self._choose(study, known, tried, explore=explore)
            if move is None:
                break
            tried.add(_key(move.settings))
            proposals.append(
                Proposal(
                    lever="+".join(move.changed),
                    settings=move.settings,
                    mechanism=move.prediction.arithmetic,
                    predicted_gain=move.prediction.gain,
                )
            )
        return proposals

    def _choose(
        self, study: optuna.Study, briefing: _Knowing, tried: set[tuple[str, ...]], *, explore: bool
    ) -> _Move | None:
        moves = sorted(_moves(briefing, tried), key=lambda m: m.prediction.gain, reverse=True)
        promising = [move for move in moves if move.prediction.gain > 0]
        bundle = _bundle(briefing, moves)
        if bundle is not None and _key(bundle.settings) not in tried:
            promising = sorted([*promising, bundle], key=lambda m: m.prediction.gain, reverse=True)
        if explore or not promising:
            known = {name for trial in briefing.trials for name in trial.changed}
            # A lever that nobody has touched comes before a new mixture of known ones.
            for move in moves:
                if not known & set(move.changed):
                    return move
            sampled = self._sample(study, briefing, tried) or _mixture(briefing, tried)
            return sampled or next(iter(moves), None)
        return promising[0]

    def _sample(
        self, study: optuna.Study, briefing: _Knowing, tried: set[tuple[str, ...]]
    ) -> _Move | None:
        """Ask TPE; of what it changes, pull two levers at most, so that a finding can name them."""
        for _ in range(_TRIES):
            trial = study.ask(_distributions())
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # judged trials are added whole
            wanted = {
                name: value
                for name, value in trial.params.items()
                if value != briefing.champion_settings[name]
            }
            single = [_move(briefing, {name: value}) for name, value in wanted.items()]
            single.sort(key=lambda move: move.prediction.gain, reverse=True)
            changed = {name: v for move in single[:2] for name, v in move.changed.items()}
            move = _move(briefing, changed)
            if changed and _key(move.settings) not in tried and _allowed(move, briefing):
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
                self._study.add_trial(_frozen(trial))
        self._num_told = len(briefing.trials)
        return self._study


def _moves(briefing: _Knowing, tried: set[tuple[str, ...]]) -> Iterator[_Move]:
    """Yield every change of one lever that is possible, new and not known to be useless."""
    for name, lever in CATALOGUE.items():
        for value in lever.values:
            if value == briefing.champion_settings[name]:
                continue
            move = _move(briefing, {name: value})
            if _key(move.settings) not in tried and _allowed(move, briefing):
                yield move


def _mixture(briefing: _Knowing, tried: set[tuple[str, ...]]) -> _Move | None:
    """Draw a few levers at random: what is left when TPE only repeats what it knows."""
    rng = random.Random(f"{briefing.seed}-{len(briefing.planned)}")
    for draw in range(_DRAWS):
        levers = rng.sample(sorted(CATALOGUE), 2 + 3 * draw // _DRAWS)  # then three, then four
        changed = {name: rng.choice(CATALOGUE[name].values) for name in levers}
        settings = {**briefing.champion_settings, **changed}
        if _key(settings) not in tried:
            new = {k: v for k, v in changed.items() if v != briefing.champion_settings[k]}
            move = _move(briefing, new)
            if _allowed(move, briefing):
                return move
    return None


def _bundle(briefing: _Knowing, moves: list[_Move]) -> _Move | None:
    """Return the best harmless value of each harmless lever in one move, if that is a move."""
    changed: dict[str, str] = {}
    for move in moves:  # the best come first
        ((name, value),) = move.changed.items()
        if _is_harmless(CATALOGUE[name]) and move.prediction.gain > 0:
            changed.setdefault(name, value)
    for name, lever in CATALOGUE.items():  # what only works together with those above
        if _is_harmless(lever) and briefing.champion_settings[name] == lever.default:
            for value in lever.values[1:]:
                more = _move(briefing, {**changed, name: value})
                better = more.prediction.gain > _move(briefing, changed).prediction.gain
                if name not in changed and better and _allowed(more, briefing):
                    changed[name] = value
    return _move(briefing, changed) if len(changed) > 1 else None


def _is_harmless(lever: Lever) -> bool:
    """Whether a lever can neither touch quality nor make every start slow."""
    return lever.risk is Risk.NONE and lever.load_s <= 5.0


def _move(briefing: _Knowing, changed: dict[str, str]) -> _Move:
    settings = {**briefing.champion_settings, **changed}
    prediction = predict(
        briefing.shape,
        briefing.champion_settings,
        settings,
        tps=briefing.champion_tps,
        bandwidth_gbps=briefing.bandwidth_gbps,
        machine=briefing.machine,
    )
    return _Move(settings, changed, prediction)


def _allowed(move: _Move, briefing: _Knowing) -> bool:
    if refusal(briefing.shape, move.settings, briefing.machine):
        return False
    return not briefing.refutations.speak_against(move, briefing.champion_tps)


def _distributions() -> dict[str, optuna.distributions.BaseDistribution]:
    return {
        name: optuna.distributions.CategoricalDistribution(lever.values)
        for name, lever in CATALOGUE.items()
    }


def _frozen(trial: Trial) -> optuna.trial.FrozenTrial:
    settings = {**SEED_SETTINGS, **trial.settings}
    # A gate other than PPL's may have refused it: that is infeasible too.
    excess = max(trial.ppl_excess, 0.01) if trial.cause is Cause.QUALITY else trial.ppl_excess
    return optuna.trial.create_trial(
        params=settings,
        distributions=_distributions(),
        value=trial.speed,
        constraints={"ppl": excess},  # feasible at zero and below
    )


def _key(settings: dict[str, str]) -> tuple[str, ...]:
    return tuple(settings.get(name, default) for name, default in SEED_SETTINGS.items())
