"""Predicted gain by arithmetic: bytes over measured bandwidth, and operations removed.

A decoded token can't take less time than reading its bytes. What a lever saves is counted by the
census; what it doesn't change (the rest of the measured time) is taken to stay as it is.
"""

from dataclasses import dataclass

from slipstream.kernels.catalogue import SHIPPED, Catalogue
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine

# One eager PyTorch operation on a few hundred numbers: Python, dispatch, allocation, a kernel that
# is too small to matter; on a GPU its launch, too (by what step=graph took off Gemma 4 E4B there).
SECONDS_PER_OP = {"cpu": 4e-6, "cuda": 8e-6}


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
    catalogue: Catalogue = SHIPPED,
) -> Prediction:
    """Predict what changing settings `now` to `then` does to an engine that runs at `tps`."""
    now, then = catalogue.effective(now), catalogue.effective(then)
    bytes_now, bytes_then = (catalogue.read_bytes(shape, settings) for settings in (now, then))
    threads, threads_then = (catalogue.num_threads(one, machine) for one in (now, then))
    tokens, tokens_then = (catalogue.expected_tokens(settings) for settings in (now, then))
    read_s = bytes_then / (bandwidth_gbps * 1e9) * machine.num_cores / threads_then
    read_now_s = bytes_now / (bandwidth_gbps * 1e9) * machine.num_cores / threads
    ops = catalogue.ops_removed(then) - catalogue.ops_removed(now)
    ops_s = ops * shape.num_layers * SECONDS_PER_OP[machine.device]
    step_s = tokens / tps
    step_then_s = max(step_s + read_s - read_now_s - ops_s, read_s)
    gain = step_s / step_then_s * tokens_then / tokens - 1
    parts = []
    if abs(bytes_then - bytes_now) > 1e5:
        parts.append(f"reads {bytes_then / 1e6:.0f} MB a token instead of {bytes_now / 1e6:.0f}")
    if ops:
        verb = "removes" if ops > 0 else "adds"
        parts.append(f"{verb} {abs(ops):.0f} operations in each of {shape.num_layers} layers")
    if tokens_then != tokens:
        parts.append(f"expects {tokens_then:.2f} tokens a pass")
    if threads_then != threads:
        parts.append(f"uses {threads_then} threads instead of {threads}")
    figures = f"{1e3 * step_s:.1f} → {1e3 * step_then_s:.1f} ms a step at {bandwidth_gbps:.0f} GB/s"
    return Prediction(gain, f"{'; '.join(parts) or 'moves no bytes'}: {figures}")
