"""What a speed on one machine says about another one."""

from pathlib import Path

import pytest

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.profiling import Profile
from slipstream.evaluation.projection import Machine, Measured, find_machine, project

FAST, SLOW = Machine(100.0, launch_us=1.0), Machine(50.0, launch_us=4.0)


def test_what_bytes_take_is_scaled_and_nothing_else() -> None:
    """10 ms a token here: 4 ms for 400 MB at 100 GB/s, and 6 ms that stay."""
    found = Measured(100.0, 400e6)
    assert project(found, FAST, SLOW) == pytest.approx(1 / 0.014)
    assert project(found, FAST, FAST) == pytest.approx(100.0)
    assert project(Measured(project(found, FAST, SLOW), 400e6), SLOW, FAST) == pytest.approx(100.0)


def test_launches_cost_what_they_cost_there() -> None:
    """1,000 launches of 1 µs are 1 ms of the 10 here, and 4 ms there."""
    assert project(Measured(100.0, 400e6, 1000), FAST, SLOW) == pytest.approx(1 / 0.017)


def test_what_is_faster_than_memory_allows_has_no_rest() -> None:
    assert project(Measured(500.0, 400e6), FAST, SLOW) == pytest.approx(1 / 0.008)


@pytest.mark.parametrize(
    ("tps", "here", "there"),
    [(0.0, FAST, SLOW), (1.0, Machine(0.0), SLOW), (1.0, FAST, Machine(-1))],
)
def test_nonsense_is_refused(tps: float, here: Machine, there: Machine) -> None:
    with pytest.raises(ValueError, match="can't be projected"):
        project(Measured(tps, 1.0), here, there)


def test_a_profile_is_projected_from_its_own_bandwidth() -> None:
    found = Profile((), token_s=0.01, first_token_s=0.1, read_bytes=400e6, bandwidth_gbps=100.0)
    assert found.project(SLOW) == pytest.approx(1 / 0.014)


def test_machines_that_ship_and_what_kernels_can_count_on_there() -> None:
    a10g = find_machine("a10g")
    assert (a10g.capability, a10g.shared_kb) == (8.6, 99)
    assert a10g.features == ("bf16", "cp.async")  # no fp8 on sm_86
    assert a10g.source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "describes no machine"),
        ("[]", "describes no machine"),
        ('{"name": "x"}', "gbps"),
        ('{"gbps": 0}', "gbps is 0"),
        ('{"gbps": 1, "cores": 2}', "cores"),
    ],
)
def test_a_file_that_describes_no_machine_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(SlipstreamError, match=words) as caught:
        find_machine(str(path))
    assert "slipstream hardware --json" in str(caught.value)


def test_a_file_of_a_machine_is_read(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text('{"gbps": 3070.0, "capability": 9.0, "features": ["tma"]}')
    assert "dependent launch" in find_machine(str(path)).features
