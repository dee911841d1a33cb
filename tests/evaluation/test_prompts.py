"""The project's own prompts: 48, five kinds, two halves of the same make."""

from collections import Counter
from pathlib import Path

from slipstream.evaluation.challenge import Workload
from slipstream.evaluation.prompts import Split, load_prompts


def test_48_prompts_in_two_like_halves(smollm2: Path) -> None:
    prompts = load_prompts(Workload(), smollm2, 49152)
    assert len({prompt.id for prompt in prompts}) == 48
    halves = {split: [p for p in prompts if p.split is split] for split in Split}
    kinds = [Counter(p.category for p in half) for half in halves.values()]
    assert kinds[0] == kinds[1]
    assert set(kinds[0]) == {"chat", "code", "maths", "extraction", "long-context"}
    texts = [{p.tokens for p in half} for half in halves.values()]
    assert not texts[0] & texts[1]
    lengths = [len(p.tokens) for p in prompts if p.category == "long-context"]
    assert min(lengths) > 500


def test_random_prompts_are_fixed_and_inside_the_vocabulary(tmp_path: Path) -> None:
    workload = Workload(prompts="random-ids", num_prompts=5, prompt_tokens=7)
    prompts = load_prompts(workload, tmp_path, 100)
    assert prompts == load_prompts(workload, tmp_path, 100)
    assert Counter(p.split for p in prompts) == {Split.PUBLIC: 5, Split.HELD_OUT: 5}
    assert all(len(p.tokens) == 7 and 0 <= min(p.tokens) <= max(p.tokens) < 100 for p in prompts)
