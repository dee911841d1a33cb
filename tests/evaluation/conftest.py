"""What tests of places share: a challenge on a tiny model, and where a run keeps its trees."""

import shutil
from pathlib import Path

import pytest
from tiny_challenge import TINY

from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.evaluation.home import data_dir
from slipstream.kernels.variants import VariantStore


@pytest.fixture
def unhurried() -> Challenge:
    """A challenge that forgives a busy machine: nothing here rests on a speed."""
    return parse_challenge(
        TINY.replace("audit_blocks = 3", "max_disturbance = 100.0"), source="tiny"
    )


@pytest.fixture
def store(home: Path, shared_home: Path, tiny_llama: Path) -> VariantStore:
    shutil.copytree(shared_home / "models", home / "models")
    return VariantStore(data_dir() / "variants")
