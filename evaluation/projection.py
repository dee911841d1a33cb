"""What a speed here says about another machine. A projection, never a measurement.

A token's time is that of the bytes it reads, at the memory's speed, and a rest: launches, prompts,
arithmetic. On another machine the bytes take as long as its memory needs; the rest stays as it is,
which is the assumption: it holds for hosts of about the same age.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A variant's speed on this machine.

    Attributes:
        tps: tokens per second.
        read_bytes: that a token reads.
    """

    tps: float
    read_bytes: float


def project(found: Measured, here_gbps: float, there_gbps: float) -> float:
    """Return the tokens per second that a variant would do where memory reads at `there_gbps`.

    Raises:
        ValueError: a speed or bandwidth that isn't positive.
    """
    if min(found.tps, here_gbps, there_gbps) <= 0:
        raise ValueError(f"{found.tps} tokens/s at {here_gbps} GB/s can't be projected")
    rest_s = max(0.0, 1 / found.tps - found.read_bytes / (here_gbps * 1e9))
    return 1 / (found.read_bytes / (there_gbps * 1e9) + rest_s)
