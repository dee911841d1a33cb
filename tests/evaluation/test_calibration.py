"""Noise of the logits, measured on a real tiny model."""

from pathlib import Path

import pytest

from slipstream.evaluation.calibration import logit_noise
from slipstream.evaluation.challenge import Quality
from slipstream.evaluation.prompts import Prompt, Split
from slipstream.evaluation.reference import Reference


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
    assert noise.reference <= noise.rounding <= 2 * noise.floor
    assert len(said) == 4
    assert reference.noise(prompts, said.append) == noise
    assert len(said) == 4  # from the record


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
