"""The baseline runs what the engines run, random weights included."""

import json
import shutil
from pathlib import Path

from slipstream.evaluation.baselines import baseline_tree
from slipstream.evaluation.child import ChildEngine


def test_sizes_without_weights_are_random_ones(tiny_llama: Path, tmp_path: Path) -> None:
    """`random.json` stands for weights that are made where they run, the same each time."""
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    shutil.copy(tiny_llama / "config.json", model_dir)
    (model_dir / "random.json").write_text(json.dumps({"seed": 7}))
    tree = baseline_tree("transformers-bf16", tmp_path / "trees")
    found = []
    for _ in range(2):
        with ChildEngine(tree, model_dir, max_context=128) as engine:
            found.append(engine.generate([3, 1, 4], 20).tokens)
    assert found[0] == found[1]
    assert all(0 <= token < 512 for token in found[0])
