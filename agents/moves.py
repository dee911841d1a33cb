"""Moves from the champion: what could be tried next, and what earlier trials say against it."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.challenge import Tier
from slipstream.kernels.levers import Lever, Risk
from slipstream.memory.duplicates import REOPEN_SPEEDUP
from slipstream.memory.ledger import LedgerEntry

from .roles import Briefing, Trial
from .roofline import Prediction, predict

_DRAWS = 300
_DOUBTFUL = ("no gain", "costs quality", "fails")


@dataclass(frozen=True)
class Move:
    """A change of settings from the champion's, and what it should bring.

    Attributes:
        prediction: from bytes and operations alone.
        gain: the same, corrected by how such predictions came true.
    """

    settings: dict[str, str]
    changed: dict[str, str]
    prediction: Prediction
    gain: float


@dataclass(frozen=True)
class Refutations:
    """What earlier trials say against moves.

    Lost quality, and an engine that fails, stay so with whatever else is pulled. A lack of gain
    holds for the very same levers, until the champion is so much faster that what they save has
    become a larger share.
    """

    hopeless: tuple[tuple[tuple[str, str], ...], ...]
    gainless: dict[tuple[tuple[str, str], ...], float]  # changed levers → the rival's speed then

    def speak_against(self, move: Move, champion_tps: float) -> bool:
        """Whether a move is known not to help a champion of this speed."""
        settings = move.settings
        if any(all(settings[name] == value for name, value in bad) for bad in self.hopeless):
            return True
        rival_tps = self.gainless.get(_items(move.changed))
        return rival_tps is not None and champion_tps < REOPEN_SPEEDUP * rival_tps


def _refutations(trials: tuple[Trial, ...]) -> Refutations:
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
    return Refutations(tuple(hopeless), gainless)


def _items(changed: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(changed.items()))


class KnowingBriefing(Briefing):
    """A briefing that has thought about its trials once."""

    @cached_property
    def refutations(self) -> Refutations:
        """What its trials speak against."""
        return _refutations(self.trials)

    @cached_property
    def levers(self) -> dict[str, Lever]:
        """Its engine's levers; lossy ones only where a gate judges them that may pass them."""
        rules = self.rules
        lossy = rules is not None and rules.tier is Tier.CHALLENGE and rules.quality.enabled
        every = self.catalogue.levers.items()
        return {name: lever for name, lever in every if lossy or lever.risk is not Risk.LOSSY}

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Of each lever the values that could work on this model and machine, if there are two."""
        possible = {
            name: self.catalogue.values(name, self.shape, self.machine) for name in self.levers
        }
        return {name: values for name, values in possible.items() if len(values) > 1}

    def is_harmless(self, lever: Lever) -> bool:
        """Whether a lever can neither touch quality that anybody judges nor make starts slow."""
        judged = self.rules is None or self.rules.quality.enabled
        safe = (Risk.NONE,) if judged else (Risk.NONE, Risk.ROUNDING)
        return lever.risk in safe and lever.load_s <= 5.0

    @cached_property
    def known(self) -> dict[tuple[str, str], LedgerEntry]:
        """What the ledger says of single levers, on any challenge of this family and machine."""
        return {(entry.lever, entry.value): entry for entry in self.ledger}

    def trials_of(self, move: Move) -> int:
        """How often the levers of a move were pulled, this way or another."""
        levers = set(move.changed)
        return sum(entry.trials for entry in self.ledger if levers & set(entry.lever.split("+")))

    def is_doubtful(self, move: Move) -> bool:
        """Whether all that is known of a move elsewhere speaks against it."""
        entries = [self.known.get(change) for change in move.changed.items()]
        return any(entry is not None and entry.status in _DOUBTFUL for entry in entries)

    def worked(self, changed: dict[str, str]) -> bool:
        """Whether each of these values was kept somewhere, and never refuted."""
        entries = [self.known.get(change) for change in changed.items()]
        return all(entry is not None and entry.status == "works" for entry in entries)

    def correction_of(self, changed: dict[str, str]) -> float:
        """Return what to multiply the predicted log gain of a change by.

        Other values of a lever that disappointed don't speak against one that worked.
        """
        correction = self.corrections.get("+".join(changed))
        factor = correction.factor if correction else 1.0
        return max(1.0, factor) if self.worked(changed) else factor

    def key_of(self, settings: dict[str, str]) -> tuple[str, ...]:
        """Return what tells settings apart here."""
        return self.catalogue.key(settings, self.machine)

    def telling(self, changed: dict[str, str]) -> dict[str, str]:
        """Return the changes that matter beside the others: a finding is to name no idle lever."""
        left = dict(changed)
        for name in changed:
            without = {key: value for key, value in left.items() if key != name}
            keys = (self.key_of({**self.champion_settings, **some}) for some in (left, without))
            if len(set(keys)) == 1:
                left = without
        return left

    def rank(self, move: Move) -> tuple[bool, float]:
        """Return what to sort moves by: the best first, doubtful ones last but not never."""
        return (self.is_doubtful(move), -move.gain)


def single_moves(briefing: KnowingBriefing, tried: set[tuple[str, ...]]) -> Iterator[Move]:
    """Yield every change of one lever that is possible, new and not known to be useless."""
    for name, lever in briefing.levers.items():
        for value in lever.values:
            if value == briefing.champion_settings[name]:
                continue
            move = move_to(briefing, {name: value})
            if briefing.key_of(move.settings) not in tried and is_allowed(move, briefing):
                yield move


def mixture(briefing: KnowingBriefing, tried: set[tuple[str, ...]]) -> Move | None:
    """Draw a few levers at random: what is left when TPE only repeats what it knows."""
    rng = random.Random(f"{briefing.seed}-{len(briefing.planned)}")
    choices = briefing.choices
    for draw in range(_DRAWS):
        count = min(len(choices), 2 + 3 * draw // _DRAWS)  # then three, then four
        levers = rng.sample(sorted(choices), count)
        changed = {name: rng.choice(choices[name]) for name in levers}
        settings = {**briefing.champion_settings, **changed}
        if briefing.key_of(settings) not in tried:
            move = move_to(briefing, briefing.telling(changed))
            if is_allowed(move, briefing):
                return move
    return None


def bundle(briefing: KnowingBriefing, moves: list[Move]) -> Move | None:
    """Return the best harmless value of each harmless lever in one move, if that is a move."""
    changed: dict[str, str] = {}
    levers = briefing.levers
    for move in moves:  # the best come first
        ((name, value),) = move.changed.items()
        if briefing.is_harmless(levers[name]) and move.gain > 0:
            changed.setdefault(name, value)
    for name, lever in levers.items():  # what only works together with those above
        fresh = name not in changed and briefing.champion_settings[name] == lever.default
        if not fresh or not briefing.is_harmless(lever):
            continue
        so_far = move_to(briefing, changed).prediction.gain
        more = [move_to(briefing, {**changed, name: value}) for value in lever.values[1:]]
        more = [one for one in more if one.prediction.gain > so_far and is_allowed(one, briefing)]
        if more:
            changed = max(more, key=lambda move: move.prediction.gain).changed
    changed = briefing.telling(changed)
    return move_to(briefing, changed) if len(changed) > 1 else None


def reunion(briefing: KnowingBriefing, moves: list[Move]) -> Move | None:
    """Return in one move what worked one by one elsewhere, if that is a move.

    It was kept on another challenge of this family and kind of machine, so it is likely to do well
    here; together it costs one experiment. The gates judge all of it, as they judge any move.
    """
    changed: dict[str, str] = {}
    for move in moves:  # the best come first
        if move.gain > 0 and briefing.worked(move.changed):
            for name, value in move.changed.items():
                changed.setdefault(name, value)
    changed = briefing.telling(changed)
    together = move_to(briefing, changed)
    return together if len(changed) > 1 and is_allowed(together, briefing) else None


def move_to(briefing: KnowingBriefing, changed: dict[str, str]) -> Move:
    """Return the move that makes these changes to the champion, with its predicted gain."""
    settings = {**briefing.champion_settings, **changed}
    prediction = predict(
        briefing.shape,
        briefing.champion_settings,
        settings,
        tps=briefing.champion_tps,
        bandwidth_gbps=briefing.bandwidth_gbps,
        machine=briefing.machine,
        catalogue=briefing.catalogue,
    )
    gain = math.expm1(briefing.correction_of(changed) * math.log1p(prediction.gain))
    return Move(settings, changed, prediction, gain)


def is_allowed(move: Move, briefing: KnowingBriefing) -> bool:
    """Whether a move is possible here and nothing on record speaks against it."""
    if briefing.catalogue.refusal(briefing.shape, move.settings, briefing.machine):
        return False
    return not briefing.refutations.speak_against(move, briefing.champion_tps)
