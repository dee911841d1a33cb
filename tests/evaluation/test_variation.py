"""Fresh prompts: other words each time, the same task."""

import json
import random
from pathlib import Path

from slipstream.evaluation.challenge import Workload
from slipstream.evaluation.prompts import _PROMPTS, VARIATIONS, Split, fresh_prompts
from slipstream.evaluation.variation import vary

TEXT = "On Monday Ana paid 250 for 14 tiles. Ana asks: are 250 and 14 right? Version 1.25, v2."


def test_numbers_names_and_days_change_consistently() -> None:
    varied = vary(TEXT, random.Random(1))
    assert varied != vary(TEXT, random.Random(2))
    assert varied == vary(TEXT, random.Random(1))
    body = varied[varied.index(" On ") :]
    assert "tiles" in body
    assert "1.25" in body  # versions and decimals stay
    numbers = [word.strip("?.,") for word in body.split() if word.strip("?.,").isdigit()]
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3]
    assert [len(number) for number in numbers] == [3, 2, 3, 2]


def test_every_shipped_prompt_varies_a_little_and_keeps_its_length() -> None:
    rng = random.Random(3)
    for line in _PROMPTS.read_text().splitlines():
        text = json.loads(line)["text"]
        varied = vary(text, rng)
        assert varied != vary(text, rng)
        assert abs(len(varied) - len(text)) < 60 + 0.1 * len(text)


def test_fresh_prompts_follow_the_seed_and_survive_a_restart(smollm2: Path, tmp_path: Path) -> None:
    workload = Workload(num_prompts=4)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = fresh_prompts(workload, smollm2, 49152, 7, tmp_path / "a")
    assert len(first) == 2 * 4 * VARIATIONS
    assert len({prompt.tokens for prompt in first}) == len(first)
    assert {prompt.split for prompt in first} == set(Split)
    assert first == fresh_prompts(workload, smollm2, 49152, 7, tmp_path / "a")
    assert first == fresh_prompts(workload, smollm2, 49152, 7, tmp_path / "b")
    other = fresh_prompts(workload, smollm2, 49152, 8, tmp_path / "c")
    assert not {prompt.tokens for prompt in first} & {prompt.tokens for prompt in other}
