"""One token's way through all layers with C between the matrix products (`glue.c`).

Compiled at load time with the machine's C compiler, in about a second, into a private folder.
Longer inputs (a prompt, a verified draft) take the PyTorch path; both share the static cache.
"""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import StaticCache
from .config import ModelConfig
from .levers import Levers
from .linear import Linear
from .llama import LlamaLayer
from .norm import RMSNorm
from .rope import RotaryTable

_SOURCE = Path(__file__).resolve().with_name("glue.c")
_FLAGS = ["-O3", "-march=native", "-ffast-math", "-fPIC", "-std=c11"]


def check_glue(config: ModelConfig, levers: Levers) -> None:
    """Refuse what the C path has no code for.

    Raises:
        ValueError: another family, dtype or cache, or matrices that aren't fused.
    """
    wanted = {"dtype": "bfloat16", "cache": "static", "fuse": "qkv+gate-up"}
    for name, value in wanted.items():
        if getattr(levers, name) != value:
            raise ValueError(f"glue=c needs {name}={value}, not {getattr(levers, name)}")
    if config.family != "llama" or config.head_dim > 512:
        raise ValueError("glue=c decodes llama models with heads of at most 512")


class Glue:
    """Runs single-token steps of a model."""

    def __init__(
        self, config: ModelConfig, layers: list[LlamaLayer], norm: RMSNorm, max_context: int
    ) -> None:
        self._c = _compile()
        self._layers, self._norm = layers, norm
        self._eps = ctypes.c_float(config.norm_eps)
        self._scale = ctypes.c_float(config.attention_scale)
        self._sizes = (config.num_heads, config.num_kv_heads, config.head_dim, max_context)
        heads_size = config.num_heads * config.head_dim
        self._normed = torch.empty(1, config.hidden_size, dtype=torch.bfloat16)
        self._attended = torch.empty(1, heads_size, dtype=torch.bfloat16)
        self._gated = torch.empty(1, config.intermediate_size, dtype=torch.bfloat16)
        self._scores = torch.empty(max_context)

    def step(
        self, x: Tensor, position: int, table: RotaryTable, caches: list[StaticCache], head: Linear
    ) -> Tensor:
        """Return the logits [1, vocab_size] after the token whose embedding is x [1, hidden].

        `x` is overwritten.
        """
        c, hidden, eps, scale = self._c, x.shape[1], self._eps, self._scale
        heads, kv_heads, head_dim, stride = self._sizes
        x_at, normed_at = x.data_ptr(), self._normed.data_ptr()
        attended_at, gated_at = self._attended.data_ptr(), self._gated.data_ptr()
        scores_at, gated_size = self._scores.data_ptr(), self._gated.shape[1]
        cos, sin = table.at(position, 1)
        cos_at, sin_at = cos.data_ptr(), sin.data_ptr()
        delta: Tensor | None = None
        for layer, cache in zip(self._layers, caches, strict=True):
            weight = layer.input_norm.weight.data_ptr()
            delta_at = None if delta is None else delta.data_ptr()
            c.add_norm(x_at, delta_at, weight, normed_at, hidden, eps)
            qkv = layer.qkv.qkv(self._normed)
            c.attend(
                qkv.data_ptr(), cos_at, sin_at, cache.key.data_ptr(), cache.value.data_ptr(),
                attended_at, scores_at, position, heads, kv_heads, head_dim, stride, scale,
            )  # fmt: skip
            cache.length = position + 1
            delta = layer.out(self._attended)
            weight = layer.mlp_norm.weight.data_ptr()
            c.add_norm(x_at, delta.data_ptr(), weight, normed_at, hidden, eps)
            gate_up = layer.mlp.gate_up(self._normed)
            c.silu_mul(gate_up.data_ptr(), gated_at, gated_size)
            delta = layer.mlp.down(self._gated)
        weight = self._norm.weight.data_ptr()
        delta_at = None if delta is None else delta.data_ptr()
        c.add_norm(x_at, delta_at, weight, normed_at, hidden, eps)
        return head(self._normed)


def _compile() -> Any:
    """Compile `glue.c` and return its functions.

    Raises:
        ValueError: no C compiler, or it refused the source.
    """
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise ValueError("glue=c needs a C compiler: apt-get install gcc")
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = f"{folder}/glue.o", f"{folder}/glue.so"
        # In two steps: linking with -ffast-math would make the whole process flush denormals.
        for command in (
            [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", compiled],
            [compiler, "-shared", compiled, "-o", library, "-lm"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise ValueError(f"glue.c: {compiler} says {reason}")
        c = ctypes.CDLL(library)  # stays mapped when the folder goes
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    c.add_norm.argtypes = [pointer] * 4 + [integer, real]
    c.silu_mul.argtypes = [pointer, pointer, integer]
    c.attend.argtypes = [pointer] * 7 + [integer] * 5 + [real]
    for function in (c.add_norm, c.silu_mul, c.attend):
        function.restype = None
    return c
