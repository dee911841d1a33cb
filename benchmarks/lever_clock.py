"""Timing many lever settings in one process: weights are loaded once for all that share them."""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slipstream.evaluation.conditions import Watch
from slipstream.kernels.engine import Engine, load
from slipstream.kernels.engine.levers import Levers
from slipstream.kernels.engine.linear import make_linear
from slipstream.kernels.engine.model import Model

NUM_TOKENS = 24
MAX_OTHERS = 0.08  # share of the cores that others may use during one timing, unless told
ATTEMPTS, PAUSE_S = 4, 0.5
# Short timings are repeated, and the median taken; most of the time goes to eager combinations.
ENOUGH_S, MOST_REPEATS = {"native": 0.25, "eager": 0.15}, 3
CONTROL = {"step": "native", "weights": "int4-g32", "head": "int8"}
CONTROL_REPEATS = 7

Settings = dict[str, str]


class Loader:
    """Engines in this process, one loaded at a time."""

    def __init__(self, model_dir: Path, max_context: int) -> None:
        self._model_dir, self._max_context = model_dir, max_context
        self._heads: dict[str, Any] = {}

    def load(self, settings: Settings) -> Engine:
        self._heads.clear()
        with tempfile.TemporaryDirectory() as tree:
            Path(tree, "levers.json").write_text(json.dumps(settings))
            return load(Path(tree), self._model_dir, self._max_context)

    def switch(self, engine: Engine, settings: Settings) -> None:
        """Set the levers that need no other weights in memory, and an eager engine's head."""
        model = engine.model
        model.levers = Levers(**settings)
        if isinstance(model, Model):
            scheme = settings["head"]
            if scheme not in self._heads:
                self._heads[scheme] = make_linear(model.embedding, scheme)
            model.head = self._heads[scheme]


@dataclass
class Clock:
    """Times an engine on the prompts; throws away what others disturbed."""

    prompts: dict[str, list[int]]
    max_others: float = MAX_OTHERS
    thrown_away: int = 0

    def warm_up(self, engine: Engine, num_tokens: int) -> None:
        engine.generate(next(iter(self.prompts.values())), num_tokens)

    def speeds(self, engine: Engine) -> dict[str, float] | None:
        """Return tokens/s by prompt, or None if the machine was never quiet."""
        found: dict[str, float] = {}
        for name, prompt in self.prompts.items():
            times: list[float] = []
            enough_s = ENOUGH_S["eager" if isinstance(engine.model, Model) else "native"]
            while sum(times) < enough_s and len(times) < MOST_REPEATS:
                seconds = self._quiet(partial(self.seconds, engine, prompt))
                if seconds is None:
                    return None
                times.append(seconds)
            found[name] = NUM_TOKENS / statistics.median(times)
        return found

    def control(self, engine: Engine) -> float:
        """Return the tokens/s of the engine that everything is divided by, now."""
        prompt = next(iter(self.prompts.values()))
        times = [self._quiet(partial(self.seconds, engine, prompt)) for _ in range(CONTROL_REPEATS)]
        quiet = [seconds for seconds in times if seconds is not None]
        return NUM_TOKENS / (statistics.median(quiet) if quiet else self.seconds(engine, prompt))

    def pair(self, engine: Engine) -> float | None:
        """Return the log ratio of an engine to itself in one ABBA pair of two prompts."""
        one, two = list(self.prompts.values())[:2]

        def abba() -> float:
            first, second, third, fourth = (self.seconds(engine, p) for p in (one, one, two, two))
            return math.log((second + third) / (first + fourth))

        return self._quiet(abba)

    def seconds(self, engine: Engine, prompt: list[int]) -> float:
        begun = time.perf_counter()
        engine.generate(prompt, NUM_TOKENS)
        return time.perf_counter() - begun

    def _quiet(self, timed: Callable[[], float]) -> float | None:
        watch = Watch(gpu=False, max_disturbance=self.max_others)
        for _ in range(ATTEMPTS):
            watch.start(lambda: 0.0)
            value = timed()
            if not watch.verdict(watch.stop()):
                return value
            self.thrown_away += 1
            time.sleep(PAUSE_S)
        return None
