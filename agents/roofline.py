"""Predicted gain by arithmetic: bytes over measured bandwidth, and operations removed.

A decoded token can't take less time than reading its bytes. What a lever saves is counted by the
census; what it doesn't change (the rest of the measured time) is taken to stay as it is.
"""

from dataclasses import dataclass

from slipstream.kernels.census import ModelShape, bytes_per_token
from slipstream.kernels.fit import effective
from slipstream.kernels.levers import CATALOGUE, Machine

# One eager PyTorch operation on a few hundred numbers: Python, dispatch, allocation, a kernel that
# is too small to matter.
SECONDS_PER_OP = 4e-6


@dataclass(frozen=True)
class Prediction:
    """Expected speed ratio minus one, and the arithmetic in words."""

    gain: float
    arithmetic: str


def predict(
    shape: ModelShape,
    now: dict[str, str],
    then: dict[str, str],
    *,
    tps: float,
    bandwidth_gbps: float,
    machine: Machine,
) -> Prediction:
    """Predict what changing settings `now` to `then` does to an engine that runs at `tps`."""
    now, then = effective(now), effective(then)
    bytes_now = sum(bytes_per_token(shape, now).values())
    bytes_then = sum(bytes_per_token(shape, then).values())
    read_s = bytes_then / (bandwidth_gbps * 1e9) * machine.num_cores / _threads(then, machine)
    read_now_s = bytes_now / (bandwidth_gbps * 1e9) * machine.num_cores / _threads(now, machine)
    ops = _ops_removed(then) - _ops_removed(now)
    ops_s = ops * shape.num_layers * SECONDS_PER_OP
    step_s = _expected_tokens(now) / tps
    step_then_s = max(step_s + read_s - read_now_s - ops_s, read_s)
    gain = step_s / step_then_s * _expected_tokens(then) / _expected_tokens(now) - 1
    parts = []
    if abs(bytes_then - bytes_now) > 1e5:
        parts.append(f"reads {bytes_then / 1e6:.0f} MB a token instead of {bytes_now / 1e6:.0f}")
    if ops:
        verb = "removes" if ops > 0 else "adds"
        parts.append(f"{verb} {abs(ops):.0f} operations in each of {shape.num_layers} layers")
    if _expected_tokens(then) != _expected_tokens(now):
        parts.append(f"expects {_expected_tokens(then):.2f} tokens a pass")
    if _threads(then, machine) != _threads(now, machine):
        parts.append(f"uses {_threads(then, machine)} threads instead of {_threads(now, machine)}")
    figures = f"{1e3 * step_s:.1f} → {1e3 * step_then_s:.1f} ms a step at {bandwidth_gbps:.0f} GB/s"
    return Prediction(gain, f"{'; '.join(parts) or 'moves no bytes'}: {figures}")


def _threads(settings: dict[str, str], machine: Machine) -> int:
    value = settings["threads"]
    return machine.num_cores if value == "all" else min(int(value), machine.num_cores)


def _ops_removed(settings: dict[str, str]) -> float:
    return sum(CATALOGUE[name].ops_removed(value) for name, value in settings.items())


def _expected_tokens(settings: dict[str, str]) -> float:
    return CATALOGUE["draft"].expected_tokens(settings["draft"])
