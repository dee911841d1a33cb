"""Which levers an engine has: the shipped one's, or those that a served engine names itself.

A served engine's are in its `levers.toml`, one table a lever:

    [levers.batch]
    values = ["512", "2048"]        # the first is the seed's
    summary = "tokens of a prompt that are computed together"
    risk = "none"                   # or rounding, speculative, lossy
    weight_bits = [16.0, 8.5]       # of each value, if it changes how many bits a weight has
    tokens_per_step = [1.0, 1.8]    # of each value, if a pass over the weights gives several
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import fit
from .census import ModelShape, bytes_per_token
from .levers import CATALOGUE, Lever, Machine, Risk

ENGINE = "engine"  # the setting that names a served engine; it has one value
_DENSE_BITS = 16.0
_THREADS = "threads"


@dataclass(frozen=True)
class Catalogue:
    """The levers of one engine, and what follows from their settings.

    Attributes:
        weight_bits: lever → bits of a weight by value.
    """

    levers: Mapping[str, Lever]
    weight_bits: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def seed(self) -> dict[str, str]:
        """The seed's settings."""
        return {name: lever.default for name, lever in self.levers.items()}

    def effective(self, settings: dict[str, str]) -> dict[str, str]:
        """Return a value for every lever."""
        return {name: settings.get(name, value) for name, value in self.seed.items()}

    def key(self, settings: dict[str, str], machine: Machine) -> tuple[str, ...]:
        """Return what tells settings apart on a machine: what every lever comes to, in order.

        As many threads as it has cores are all of them.
        """
        found = self.effective(settings)
        if found.get(_THREADS) == str(machine.num_cores):
            found = {**found, _THREADS: "all"}
        return tuple(found.values())

    def refusal(self, shape: ModelShape, settings: dict[str, str], machine: Machine) -> str | None:  # noqa: ARG002
        """Return why these settings can't work on this model and machine, or None."""
        return self.unknown(settings)

    def values(self, name: str, shape: ModelShape, machine: Machine) -> tuple[str, ...]:  # noqa: ARG002
        """Return those values of a lever that could work on this model and machine."""
        return self.levers[name].values

    def unknown(self, settings: Mapping[str, object]) -> str | None:
        """Return which setting is no lever's value, or None."""
        for name, value in settings.items():
            if name not in self.levers:
                return f"lever {name!r}: not one of {', '.join(self.levers)}"
            if value not in self.levers[name].values:
                return f"{name}={value}: not one of {', '.join(self.levers[name].values)}"
        return None

    def read_bytes(self, shape: ModelShape, settings: dict[str, str]) -> float:
        """Return the bytes that one decoded token reads."""
        census = bytes_per_token(shape, {"cache": "static"})
        cache = census.pop("kv-cache")
        bits = _DENSE_BITS
        for name, by_value in self.weight_bits.items():
            bits = by_value[self.levers[name].values.index(self.effective(settings)[name])]
        return sum(census.values()) * bits / _DENSE_BITS + cache

    def ops_removed(self, settings: dict[str, str]) -> float:
        """Return operations per layer that these settings remove from the seed."""
        return sum(self.levers[name].ops_removed(value) for name, value in settings.items())

    def expected_tokens(self, settings: dict[str, str]) -> float:
        """Return tokens expected from one pass over the weights."""
        found = 1.0
        for name, lever in self.levers.items():
            found *= lever.expected_tokens(settings[name])
        return found

    def num_threads(self, settings: dict[str, str], machine: Machine) -> int:
        """Return how many cores compute."""
        value = settings.get(_THREADS, "all")
        return machine.num_cores if value == "all" else min(int(value), machine.num_cores)


class _Shipped(Catalogue):
    """The shipped engine's: `levers.py`, and how they go together by `fit.py`."""

    def effective(self, settings: dict[str, str]) -> dict[str, str]:
        return fit.effective(settings)

    def refusal(self, shape: ModelShape, settings: dict[str, str], machine: Machine) -> str | None:
        return fit.refusal(shape, settings, machine)

    def values(self, name: str, shape: ModelShape, machine: Machine) -> tuple[str, ...]:
        lever = self.levers[name]
        return tuple(v for v in lever.values if lever.refusal(shape, v, machine) is None)

    def read_bytes(self, shape: ModelShape, settings: dict[str, str]) -> float:
        return sum(bytes_per_token(shape, self.effective(settings)).values())

    def key(self, settings: dict[str, str], machine: Machine) -> tuple[str, ...]:
        return super().key(_without_threads(settings, machine), machine)

    def num_threads(self, settings: dict[str, str], machine: Machine) -> int:
        return super().num_threads(_without_threads(settings, machine), machine)


def _without_threads(settings: dict[str, str], machine: Machine) -> dict[str, str]:
    """Return the settings as they come to on a GPU, where no core computes."""
    return {**settings, _THREADS: "all"} if machine.device == "cuda" else settings


SHIPPED: Catalogue = _Shipped(CATALOGUE)


def read_catalogue(engine: str, text: str) -> Catalogue:
    """Return the levers of a served engine.

    Args:
        engine: its name.
        text: its `levers.toml`.

    Raises:
        ValueError: one line on what is wrong.
    """
    try:
        tables = tomllib.loads(text).get("levers", {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"levers.toml: {error}") from error
    if not isinstance(tables, dict) or ENGINE in tables:
        raise ValueError(f"levers.toml: levers has to be tables, none of them named {ENGINE!r}")
    levers = {ENGINE: Lever(ENGINE, (engine,), "the server that is tuned", Risk.NONE)}
    bits: dict[str, tuple[float, ...]] = {}
    for name, table in tables.items():
        levers[name] = _lever(name, table)
        if "weight_bits" in table:
            bits[name] = _numbers(name, table, "weight_bits")
    if len(bits) > 1:
        raise ValueError(f"levers.toml: {' and '.join(bits)}: only one has weight_bits")
    return Catalogue(levers, bits)


def _lever(name: str, table: Any) -> Lever:
    known = {"values", "summary", "risk", "needs", "weight_bits", "tokens_per_step"}
    if not isinstance(table, dict) or (unknown := sorted(table.keys() - known)):
        wrong = unknown if isinstance(table, dict) else [name]
        raise ValueError(
            f"levers.toml: {name}: unknown {wrong[0]!r}; valid: {', '.join(sorted(known))}"
        )
    values = table.get("values")
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"levers.toml: {name}: values has to be a list of strings")
    counts = [value for value in values if value != "all"]
    if name == _THREADS and not all(value.isdigit() and int(value) for value in counts):
        raise ValueError(f"levers.toml: {name}: values have to be numbers of cores, or 'all'")
    try:
        risk = Risk(table.get("risk", "none"))
    except ValueError as error:
        raise ValueError(f"levers.toml: {name}: risk: {error}; valid: {', '.join(Risk)}") from error
    steps = _numbers(name, table, "tokens_per_step") if "tokens_per_step" in table else ()
    return Lever(
        name,
        tuple(values),
        str(table.get("summary", "")),
        risk,
        needs=str(table.get("needs", "")),
        tokens_per_step=steps,
    )


def _numbers(name: str, table: dict[str, Any], key: str) -> tuple[float, ...]:
    found = table[key]
    good = isinstance(found, list) and all(isinstance(v, int | float) and v > 0 for v in found)
    if not good or len(found) != len(table["values"]):
        raise ValueError(f"levers.toml: {name}: {key} has to hold one number > 0 for each value")
    return tuple(float(value) for value in found)
