"""What a speed here says about another machine. A projection, never a measurement.

A token's time is that of the bytes it reads, at the memory's speed, that of its kernel launches,
and a rest: arithmetic, waiting, Python. On another machine the bytes and the launches take what
that machine's profile says; the rest stays as it is, which is the assumption: it holds for
processors of about the same age. `benchmarks/projection.py` holds it against measurements.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .errors import SlipstreamError

_KNOWN = Path(__file__).resolve().with_name("gpus.toml")


@dataclass(frozen=True)
class Machine:
    """What a projection has to know of a machine.

    Attributes:
        gbps: how fast its device reads memory, in GB/s.
        launch_us: what a small kernel costs inside a CUDA graph.
        capability: the GPU's, such as 8.6; 0 for a processor.
        shared_kb: shared memory that a block can have.
        source: where the figures are from.
    """

    gbps: float
    name: str = ""
    launch_us: float = 0.0
    capability: float = 0.0
    shared_kb: float = 0.0
    source: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """What kernels can count on there, by its capability (CUDA C++ Programming Guide)."""
        since = {"bf16": 8.0, "cp.async": 8.0, "fp8": 8.9, "dependent launch": 9.0, "tma": 9.0}
        return tuple(name for name, first in since.items() if self.capability >= first)


@dataclass(frozen=True)
class Measured:
    """A variant's speed on a machine.

    Attributes:
        tps: tokens per second.
        read_bytes: that a token reads.
        num_launches: of kernels, for a token.
    """

    tps: float
    read_bytes: float
    num_launches: int = 0


def project(found: Measured, here: Machine, there: Machine) -> float:
    """Return the tokens per second that a variant would do on another machine.

    Raises:
        ValueError: a speed or bandwidth that isn't positive.
    """
    if min(found.tps, here.gbps, there.gbps) <= 0:
        raise ValueError(f"{found.tps} tokens/s at {here.gbps} GB/s can't be projected")
    known_s = [
        found.read_bytes / (machine.gbps * 1e9) + found.num_launches * machine.launch_us * 1e-6
        for machine in (here, there)
    ]
    return 1 / (known_s[1] + max(0.0, 1 / found.tps - known_s[0]))


def known_machines() -> dict[str, Machine]:
    """Return the machines whose profiles are shipped, by a short name such as "a10g"."""
    return {name: Machine(**row) for name, row in tomllib.loads(_KNOWN.read_text()).items()}


def find_machine(name: str) -> Machine:
    """Return a machine by its short name, or from a file such as `slipstream hardware` writes.

    Raises:
        SlipstreamError: neither, or a file that describes no machine.
    """
    known = known_machines()
    if name in known:
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise SlipstreamError(
            f"{name} is no machine known: name one of {', '.join(sorted(known))}, or the file that "
            "`slipstream hardware --json` wrote on it"
        )
    try:
        found = json.loads(path.read_text())
        found.pop("features", None)  # follow from the capability
        machine = Machine(**found)
        if machine.gbps <= 0:
            raise ValueError(f"gbps is {machine.gbps}")
    except (ValueError, TypeError, AttributeError) as error:
        raise SlipstreamError(
            f"{name} describes no machine ({error}): write it with `slipstream hardware --json`"
        ) from None
    return machine
