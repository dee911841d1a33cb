"""Which settings of the CPU's levers the table holds, and reading it.

Settings that come to the same (`kernels/fit.py`: a lever that does nothing beside others) are one
combination. Levers that the table doesn't vary stay at the seed's value.
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from slipstream.kernels.catalogue import SHIPPED
from slipstream.kernels.census import ModelShape
from slipstream.kernels.engine.levers import CHOICES
from slipstream.kernels.fit import refusal
from slipstream.kernels.levers import SEED_SETTINGS, Machine

DATA = Path(__file__).with_name("data")
TABLE, SUMMARY = "lever_table.csv", "lever_table.json"
WORKLOADS = ("short", "long")
# A torch.compile of each is 30 s, and float32 doubles every eager combination; lossy levers are for
# another tier.
_FIXED = ("compile", "dtype", "vocab", "window", "skip")
VARIED = tuple(name for name in CHOICES if name not in _FIXED)

Key = tuple[str, ...]


def key_of(settings: dict[str, str], machine: Machine) -> Key:
    """Return what every lever comes to, in the order of `SEED_SETTINGS`."""
    return SHIPPED.key(settings, machine)


def combinations(
    shape: ModelShape, machine: Machine, varied: Collection[str], *, step: str
) -> list[dict[str, str]]:
    """Return each possible combination of the varied levers once, with this `step`.

    Eager ones run on all cores only: fewer would triple the largest part of the table.
    """
    values = {
        name: choices if name in varied else (SEED_SETTINGS[name],)
        for name, choices in CHOICES.items()
    }
    values["step"] = (step,) if step in values["step"] else ()
    if step == "eager":
        values["threads"] = ("all",)
    found: dict[Key, dict[str, str]] = {}
    for chosen in product(*values.values()):
        settings = dict(zip(values, chosen, strict=True))
        if refusal(shape, settings, machine) is None:
            key = key_of(settings, machine)
            found[key] = dict(zip(SEED_SETTINGS, key, strict=True))
    return list(found.values())


@dataclass(frozen=True)
class Row:
    """One combination, with tokens per second by workload, and in how many passes it was timed."""

    settings: dict[str, str]
    tps: dict[str, float]
    passes: int


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write a line per combination."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*SEED_SETTINGS, *(f"tps_{name}" for name in WORKLOADS), "passes"])
        for row in rows:
            speeds = [f"{row.tps[name]:.2f}" for name in WORKLOADS]
            writer.writerow([*(row.settings[name] for name in SEED_SETTINGS), *speeds, row.passes])


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of a table."""
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            yield Row(
                {name: line.get(name, value) for name, value in SEED_SETTINGS.items()},
                {name: float(line[f"tps_{name}"]) for name in WORKLOADS},
                int(line["passes"]),
            )
