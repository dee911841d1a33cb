"""Where a decoded token's time goes: per component, beside the time that its bytes have to take.

The components' times are the engine's own account of itself, good for choosing what to try next and
for nothing else; the token's time is measured by the parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .child import ChildEngine
from .projection import Machine, Measured, project


@dataclass(frozen=True)
class Component:
    """One part of a decoded token.

    Attributes:
        read_bytes: what it has to read per token, counted from the sizes.
        time_s: how long it takes, by the engine's own clock.
        share: of the whole token's time.
        roofline: the time its bytes have to take over the time it takes; None if it reads nothing.
    """

    name: str
    read_bytes: float
    time_s: float
    share: float
    roofline: float | None


@dataclass(frozen=True)
class Profile:
    """A token's time and what it consists of, the dearest first.

    Attributes:
        token_s: seconds per decoded token, on the parent's clock.
        first_token_s: seconds to the first token.
        acceptance: share of drafted tokens that came true, by position; empty without drafts.
    """

    components: tuple[Component, ...]
    token_s: float
    first_token_s: float
    read_bytes: float
    bandwidth_gbps: float
    acceptance: tuple[float, ...] = ()

    @property
    def roofline(self) -> float:
        """The share of the read bandwidth that decoding reaches."""
        return self.read_bytes / (self.bandwidth_gbps * 1e9) / self.token_s

    def project(self, there: Machine) -> float:
        """Return the tokens per second that this would be on another machine: a projection."""
        measured = Measured(1 / self.token_s, self.read_bytes)
        return project(measured, Machine(self.bandwidth_gbps), there)


def profile(
    engine: ChildEngine,
    prompt: list[int],
    num_tokens: int,
    census: Mapping[str, float],
    bandwidth_gbps: float,
) -> Profile:
    """Measure an engine that is otherwise left alone.

    Args:
        census: bytes read per token and component.
        bandwidth_gbps: how fast this machine reads.

    Raises:
        EngineError: the engine failed, or answers nonsense.
    """
    # The census has the cache apart; no kernel does anything else with it than attend.
    census = {"attention" if name == "kv-cache" else name: n for name, n in census.items()}
    engine.generate(prompt, num_tokens)  # warms up
    first_s = engine.generate(prompt, 1).duration_s
    whole_s = engine.generate(prompt, num_tokens).duration_s
    token_s = max(whole_s - first_s, 1e-9) / (num_tokens - 1)
    times = engine.profile(prompt, num_tokens)
    speed = bandwidth_gbps * 1e9
    rows = [
        Component(
            name,
            census.get(name, 0.0),
            time_s,
            time_s / token_s,
            census[name] / speed / time_s if census.get(name) and time_s else None,
        )
        for name, time_s in times.items()
    ]
    rows.sort(key=lambda row: -row.time_s)
    rest_s = token_s - sum(times.values())
    if rest_s > 0.01 * token_s:
        rows.append(Component("between them", 0.0, rest_s, rest_s / token_s, None))
    read_bytes, acceptance = sum(census.values()), engine.acceptance()
    return Profile(tuple(rows), token_s, first_s, read_bytes, bandwidth_gbps, acceptance)
