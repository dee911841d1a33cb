"""Places on a real Ray cluster, and what is said where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from slipstream.evaluation import cluster as clusters
from slipstream.evaluation.errors import SlipstreamError

CASES = Path(__file__).with_name("cases_on_ray.py")


@pytest.mark.parametrize(
    "case",
    ["test_a_run_survives_a_killed_worker_and_a_killed_node", "test_real_engines_are_measured"],
)
def test_on_a_cluster(case: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'alone'}", f"{CASES}::{case}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout


def test_without_a_cluster_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(SlipstreamError, match=r"no cluster at auto: Could not.*ray start --head"):
        clusters.join("")
