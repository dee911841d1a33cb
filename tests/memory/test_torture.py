"""The short version of `make torture`: real loops killed, stopped and resumed."""

from pathlib import Path

import pytest
from torture import torture


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_or_done_twice(url: str, tmp_path: Path) -> None:
    toll = torture(url, tmp_path / "home", kills=15, stops=3, most_points=40, step=10)
    print(toll)
    assert toll.kills >= 5
    assert toll.stops >= 1
    assert toll.taken >= 1
    assert toll.refused >= 1  # what the stopped wrote without a claim
    assert toll.points >= 8
    assert toll.rows > 100
    assert (toll.lost, toll.duplicated, toll.measured_twice, toll.faults) == (0, 0, 0, 0)
    assert toll.errors == []
