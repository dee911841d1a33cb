"""The engines that others are compared with. They run as children like any variant."""

import json
import shutil
from pathlib import Path

_TRANSFORMERS = Path(__file__).resolve().parent / "baseline_engines" / "transformers"
_DTYPES = {"transformers-bf16": "bfloat16", "transformers-fp32": "float32"}


def baseline_tree(name: str, into: Path) -> Path:
    """Lay out the tree of a baseline, `transformers-bf16` or `transformers-fp32`, and return it."""
    tree = into / name
    if not (tree / "levers.json").exists():
        shutil.copytree(_TRANSFORMERS / "engine", tree / "engine", dirs_exist_ok=True)
        (tree / "levers.json").write_text(json.dumps({"dtype": _DTYPES[name]}))
    return tree
