"""Tensors of a Hugging Face checkpoint by name, from one safetensors file or several shards."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class Checkpoint:
    """Lazy access to the tensors of `model_dir`, converted to `dtype` when taken."""

    def __init__(self, model_dir: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        index = model_dir / "model.safetensors.index.json"
        if index.exists():
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            shards = sorted(set(weight_map.values()))
        else:
            shards = ["model.safetensors"]
        self._files = [safe_open(model_dir / shard, framework="pt") for shard in shards]
        self._holder = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._holder

    def take(self, name: str) -> Tensor:
        """Return the tensor `name`.

        Raises:
            ValueError: the checkpoint has no such tensor.
        """
        if name not in self._holder:
            raise ValueError(f"checkpoint has no tensor {name!r}")
        tensor: Tensor = self._holder[name].get_tensor(name)
        return tensor.to(self.dtype)

    def take_if_present(self, name: str) -> Tensor | None:
        """Return the tensor `name`, or None."""
        return self.take(name) if name in self else None
