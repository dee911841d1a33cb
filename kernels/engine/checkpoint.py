"""Tensors of a Hugging Face checkpoint by name, made on the device and in the dtype that is wanted.

A checkpoint is a folder with one safetensors file or several shards. A text decoder inside a
multimodal checkpoint answers to the same names as a plain one. A folder without safetensors but
with `random.json` ({"seed": 0}) stands for random weights of the sizes in its `config.json`: speed
can be measured without 16 GB to download. They are made one at a time.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .config import read_config
from .shapes import tensor_shapes

_TEXT_PREFIXES = ("model.language_model.", "language_model.model.")


class Checkpoint:
    """Lazy access to the tensors of `model_dir`, converted to `dtype` when taken.

    Raises:
        ValueError: neither safetensors nor `random.json` in `model_dir`.
    """

    def __init__(
        self, model_dir: Path, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        index = model_dir / "model.safetensors.index.json"
        shards = ["model.safetensors"]
        if index.exists():
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            shards = sorted(set(weight_map.values()))
        self._shapes: dict[str, tuple[int, ...]] = {}
        if not (model_dir / shards[0]).exists():
            random = model_dir / "random.json"
            if not random.exists():
                raise ValueError(f"checkpoint has neither {shards[0]} nor random.json")
            self._seed = int(json.loads(random.read_text())["seed"])
            self._shapes = tensor_shapes(read_config(model_dir))
            shards = []
        files = [safe_open(model_dir / shard, framework="pt") for shard in shards]
        self._holder = {_text_name(name): (file, name) for file in files for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._holder or name in self._shapes

    def take(self, name: str) -> Tensor:
        """Return the tensor `name`, as a plain text checkpoint calls it.

        Raises:
            ValueError: the checkpoint has no such tensor.
        """
        if name in self._shapes:
            return self._random(name)
        if name not in self._holder:
            raise ValueError(f"checkpoint has no tensor {name!r}")
        file, stored = self._holder[name]
        tensor: Tensor = file.get_tensor(stored)
        return tensor.to(self.device, self.dtype)

    def take_if_present(self, name: str) -> Tensor | None:
        """Return the tensor `name`, or None."""
        return self.take(name) if name in self else None

    def take_integers(self, name: str) -> Tensor:
        """Return a tensor of indices [...], int64.

        Raises:
            ValueError: the checkpoint has no such tensor.
        """
        if name not in self._holder:
            raise ValueError(f"checkpoint has no tensor {name!r}")
        file, stored = self._holder[name]
        tensor: Tensor = file.get_tensor(stored)
        return tensor.to(self.device, torch.int64)

    def _random(self, name: str) -> Tensor:
        """Return the same numbers for the same name and seed, on one kind of device.

        Matrices are drawn with a deviation of 0.02, as transformers initialises them; norms and
        scalars do nothing. Gemma 4 doesn't scale its scores, so a neutral key norm does it.
        """
        shape = self._shapes[name]
        if len(shape) == 1:
            neutral = shape[0] ** -0.5 if name.endswith("k_norm.weight") else 1.0
            return torch.full(shape, neutral, dtype=self.dtype, device=self.device)
        digest = hashlib.sha256(f"{self._seed}|{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7], "big"))
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        return tensor.normal_(0.0, 0.02, generator=generator)


def _text_name(name: str) -> str:
    """Return what a plain text checkpoint calls the tensor that a multimodal one calls `name`."""
    for prefix in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name
