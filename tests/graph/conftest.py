"""Fixtures of the loop's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import loops
import pytest
from loops import Loop


@pytest.fixture
def make_loop(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Loop]]:
    """Make a loop on the memory of this test's home; call it again after a crash."""
    monkeypatch.setattr("slipstream.graph.opening.bandwidth_of", lambda _: 28.0)
    made: list[Loop] = []

    def make() -> Loop:
        made.append(loops.make_loop())
        return made[-1]

    yield make
    for loop in made:
        loop.memory.close()


@pytest.fixture
def loop(make_loop: Callable[[], Loop]) -> Loop:
    """One loop."""
    return make_loop()
