"""Noise of the logits, measured on a real tiny model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from slipstream.evaluation.calibration import LogitNoise, logit_noise
from slipstream.evaluation.challenge import Quality
from slipstream.evaluation.prompts import Prompt, Split
from slipstream.evaluation.reference import Reference


@pytest.mark.timed
def test_noise_is_measured_once_and_orders_as_expected(
    tiny_llama: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = Quality(documents=4, continuation_tokens=8)
    reference = Reference(tiny_llama, quality, max_context=64)
    prompts = [Prompt(f"p{i}", "random", Split.PUBLIC, (i + 1, 2, 3, 4)) for i in range(4)]
    said: list[str] = []
    noise = reference.noise(prompts, said.append)
    assert noise.num_positions == 32
    assert 0 <= noise.reference < 1e-3  # float32
    assert noise.rounding >= noise.reference
    assert noise.floor > 1e-3 > noise.reference  # bfloat16 has 8 bits of mantissa
    assert len(said) == 4
    assert reference.noise(prompts, said.append) == noise
    assert len(said) == 4  # from the record


class Scripted:
    """An engine whose two best tokens lie so far apart, at its first step, later, and at once."""

    def __init__(self, one_by_one: float, at_once: float) -> None:
        self.one_by_one, self.at_once = one_by_one, at_once

    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        return np.array([0, self.one_by_one, -9], np.float32)

    def reveal(self, token: int) -> NDArray[np.float32]:
        return self.begin([])

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.array([[0, self.at_once, -9] for _ in tokens], np.float32)

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *exc: object) -> None:
        pass


FP32 = {None: Scripted(4.0, 4.125), 1: Scripted(4.0625, 4.0625)}


@pytest.mark.parametrize(
    ("bf16", "rounding", "floor"),
    [
        ({None: Scripted(4.5, 4.75), 1: Scripted(3.875, 4.5)}, 0.625, 0.75),
        ({None: Scripted(4.5, 4.5), 1: Scripted(4.5, 4.5)}, 0.125, 0.5),  # not below the reference
    ],
)
def test_noise_is_the_largest_difference_of_the_gap(
    bf16: dict[int | None, Scripted], rounding: float, floor: float, tmp_path: Path
) -> None:
    def start(name: str, threads: int | None) -> Scripted:
        return (FP32 if name == "transformers-fp32" else bf16)[threads]

    documents = [((1, 2), (3, 4, 5)), ((6,), (7, 8))]
    noise = logit_noise(tmp_path / "noise.json", documents, start)  # type: ignore[arg-type]
    assert noise == LogitNoise(0.125, rounding, floor, num_positions=5)


def test_logits_at_once_are_those_of_one_by_one(tiny_llama: Path, home: Path) -> None:
    reference = Reference(tiny_llama, Quality(documents=4, continuation_tokens=8), max_context=64)
    (document,) = reference.documents([Prompt("p", "random", Split.PUBLIC, (5, 6, 7))])
    try:
        rows = reference.logits(document.prompt.tokens, document.tokens)
    finally:
        reference.close()
    assert rows == pytest.approx(document.logits(), abs=1e-4)


def test_unreadable_record_is_not_silently_used(tmp_path: Path) -> None:
    kept = tmp_path / "noise.json"
    kept.write_text("{}")
    with pytest.raises(TypeError):
        logit_noise(kept, [], lambda *_: None)  # type: ignore[arg-type, return-value]
