"""The engines that others are compared with. They run as children like any variant."""

import hashlib
import json
import shutil
from pathlib import Path

_TRANSFORMERS = Path(__file__).resolve().parent / "baseline_engines" / "transformers"
_DTYPES = {"transformers-bf16": "bfloat16", "transformers-fp32": "float32"}


def is_baseline(name: str) -> bool:
    """Whether `name` is a baseline's and not a variant's."""
    return name in _DTYPES


def baseline_tree(name: str, into: Path, threads: int | None = None) -> Path:
    """Lay out the tree of a baseline, `transformers-bf16` or `transformers-fp32`, and return it.

    Args:
        into: a folder; baselines laid out there before are used again.
        threads: as many as there are cores by default.
    """
    levers = {"dtype": _DTYPES[name], "threads": threads}
    source = hashlib.sha256(json.dumps(levers).encode())
    for path in sorted((_TRANSFORMERS / "engine").glob("*.py")):
        source.update(path.read_bytes())
    tree = into / f"{name}-{source.hexdigest()[:8]}"
    if not (tree / "levers.json").exists():
        shutil.copytree(_TRANSFORMERS / "engine", tree / "engine", dirs_exist_ok=True)
        (tree / "levers.json").write_text(json.dumps(levers))
    return tree
