"""The whole decode step in C++ (`step.cpp`): every layer, the head and the choice in one call.

Stands where `model.Model` stands and computes the same function with other rounding: activations
are float32 between the matrices, and inputs of a matrix are rounded to bfloat16, or to int8 per
block of 32 where integer arithmetic was chosen (as llama.cpp does).
"""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .compiled import build
from .config import ModelConfig
from .levers import Levers
from .lossy import kept_layers, kept_words, narrowed, widened
from .packing import MatrixSpec, Packed, pack
from .rope import RotaryTable
from .sequence import SoftTokens, check_tokens

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_NORMS = ("input_norm", "attention_norm", "query_norm", "key_norm", "mlp_norm", "output_norm")
# As `Component` in step.cpp counts them.
_COMPONENTS = ("qkv", "attention", "attention-out", "gate-up", "down", "head", "norms")
_NORM_NAMES = {
    "llama": ("input_layernorm", None, None, None, "post_attention_layernorm", None),
    "gemma3": (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class _LayerSpec(ctypes.Structure):
    _fields_ = (
        *((name, MatrixSpec) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _POINTER) for name in (*_NORMS, "cos", "sin", "key", "value")),
        ("window", _INT),
    )


class _DecoderSpec(ctypes.Structure):
    _fields_ = (
        *(
            (name, _INT)
            for name in (
                "hidden", "heads", "kv_heads", "head_dim", "feed", "vocab", "max_context", "gelu",
                "threads", "portable",
            )
        ),
        *((name, _FLOAT) for name in ("eps", "attention_scale", "embedding_scale")),
        ("embedding", _POINTER),
        ("norm", _POINTER),
        ("head", MatrixSpec),
        ("num_layers", _INT),
        ("layers", ctypes.POINTER(_LayerSpec)),
    )  # fmt: skip


class NativeModel:
    """A decoder with its caches, in C++. `length` is the number of positions they hold."""

    def __init__(
        self,
        ckpt: Checkpoint,
        config: ModelConfig,
        levers: Levers,
        max_context: int,
        *,
        portable: bool = False,
    ) -> None:
        _check(config, levers, ckpt.device)
        config = narrowed(config, levers)
        self.config, self.levers, self.max_context = config, levers, max_context
        self.length = 0
        self._c = native_functions()
        self._kept: list[Tensor] = []  # what the pointers in C++ point into
        self._int8_inputs = levers.activations == "int8"
        self._tables = {
            rope: RotaryTable(rope, max_context, torch.float32, ckpt.device)
            for rope in dict.fromkeys(config.ropes)
        }
        embedding = ckpt.take("model.embed_tokens.weight").to(torch.bfloat16).contiguous()
        head = embedding if config.tied_head else ckpt.take("lm_head.weight")
        kept, self._num_words = kept_layers(config, levers), kept_words(config, levers)
        layers = (_LayerSpec * len(kept))(*(self._layer(ckpt, i) for i in kept))
        # Gemma multiplies embeddings by √hidden, rounded to bfloat16.
        scale = torch.tensor(math.sqrt(config.hidden_size)).bfloat16().item()
        spec = _DecoderSpec(
            config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim,
            config.intermediate_size, self._num_words, max_context, config.family == "gemma3",
            torch.get_num_threads(), portable,
            config.norm_eps, config.attention_scale, scale if config.family == "gemma3" else 1.0,
            self._keep(embedding), self._norm(ckpt, "model.norm"),
            self._keep_packed(
                pack(head[: self._num_words], levers.head, int8_inputs=self._int8_inputs)
            ),
            len(kept), layers,
        )  # fmt: skip
        self._decoder = _POINTER(self._c.decoder_new(ctypes.byref(spec)))

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._c.decoder_free(self._decoder)

    @property
    def vectorised(self) -> bool:
        """Whether the AVX-512 path runs; else the portable one."""
        return bool(self._c.decoder_path(self._decoder))

    def reset(self) -> None:
        """Forget every position."""
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)

    def __call__(
        self, tokens: list[int], *, last_only: bool = True, soft: SoftTokens | None = None
    ) -> Tensor:
        """Append `tokens` and return the logits that follow.

        Returns:
            [1, vocab_size], or [len(tokens), vocab_size] when `last_only` is false; float32.

        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than `max_context`.
        """
        _check_soft(soft)
        logits = torch.empty(1 if last_only else len(tokens), self._num_words)
        self._forward(tokens, logits, last_only=last_only)
        return widened(logits, self.config.vocab_size)

    def choose(
        self, tokens: list[int], *, last_only: bool = True, soft: SoftTokens | None = None
    ) -> list[int]:
        """Append `tokens` and return the likeliest next one, after the last or after each.

        Raises:
            ValueError: as calling the model does.
        """
        _check_soft(soft)
        return self._forward(tokens, None, last_only=last_only)

    def decode(self, token: int, count: int) -> list[int]:
        """Append `token` and `count` - 1 greedy ones after it; return all `count` choices.

        Raises:
            ValueError: as calling the model does.
        """
        check_tokens([token], self.config.vocab_size, self.length + count - 1, self.max_context)
        chosen = (_INT * count)()
        self._c.decoder_decode(self._decoder, token, self.length, count, chosen)
        self.length += count
        return list(chosen)

    def profile(self, token: int, count: int) -> dict[str, float]:
        """Decode as `decode` does; return seconds by component."""
        check_tokens([token], self.config.vocab_size, self.length + count - 1, self.max_context)
        seconds = (ctypes.c_double * len(_COMPONENTS))()
        self._c.decoder_profile(self._decoder, token, self.length, count, (_INT * count)(), seconds)
        self.length += count
        return dict(zip(_COMPONENTS, seconds, strict=True))

    def _forward(self, tokens: list[int], logits: Tensor | None, *, last_only: bool) -> list[int]:
        check_tokens(tokens, self.config.vocab_size, self.length, self.max_context)
        chosen = (_INT * (1 if last_only else len(tokens)))()
        self._c.decoder_forward(
            self._decoder, (_INT * len(tokens))(*tokens), len(tokens), self.length,
            not last_only, None if logits is None else logits.data_ptr(), chosen,
        )  # fmt: skip
        self.length += len(tokens)
        return list(chosen)

    def _layer(self, ckpt: Checkpoint, index: int) -> _LayerSpec:
        config, prefix = self.config, f"model.layers.{index}"
        names = _NORM_NAMES[config.family]
        norms = [None if name is None else self._norm(ckpt, f"{prefix}.{name}") for name in names]
        attention = [f"{prefix}.self_attn.{letter}_proj" for letter in "qkv"]
        gate, up = (ckpt.take(f"{prefix}.mlp.{name}_proj.weight") for name in ("gate", "up"))
        # A tile of gate beside its tile of up: whoever computes one has the other.
        size = config.hidden_size
        gate_up = torch.stack((gate.view(-1, 16, size), up.view(-1, 16, size)), 1).view(-1, size)
        biases = [
            b for name in attention if (b := ckpt.take_if_present(f"{name}.bias")) is not None
        ]
        table = self._tables[config.ropes[index]]
        shape = (config.num_kv_heads, -(-self.max_context // 16) * 16, config.head_dim)
        return _LayerSpec(
            self._matrix(
                torch.cat([ckpt.take(f"{name}.weight") for name in attention]),
                torch.cat(biases) if biases else None,
            ),
            self._matrix(
                ckpt.take(f"{prefix}.self_attn.o_proj.weight"),
                ckpt.take_if_present(f"{prefix}.self_attn.o_proj.bias"),
            ),
            self._matrix(gate_up),
            self._matrix(ckpt.take(f"{prefix}.mlp.down_proj.weight")),
            *norms,
            self._keep(table.cos),
            self._keep(table.sin),
            self._keep(torch.zeros(shape, dtype=torch.bfloat16)),
            self._keep(torch.zeros(shape, dtype=torch.bfloat16)),
            config.windows[index] or 0,
        )

    def _matrix(self, weight: Tensor, bias: Tensor | None = None) -> MatrixSpec:
        return self._keep_packed(
            pack(weight, self.levers.weights, int8_inputs=self._int8_inputs, bias=bias)
        )

    def _norm(self, ckpt: Checkpoint, name: str) -> int:
        offset = 1.0 if self.config.family == "gemma3" else 0.0
        return self._keep(ckpt.take(f"{name}.weight").float() + offset)

    def _keep_packed(self, packed: Packed) -> MatrixSpec:
        self._kept += packed.tensors
        return packed.spec

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _check(config: ModelConfig, levers: Levers, device: torch.device) -> None:
    if device.type != "cpu":
        raise ValueError(f"step=native runs on a CPU, not on {device.type}")
    if config.family not in _NORM_NAMES:
        raise ValueError(f"step=native decodes {' and '.join(_NORM_NAMES)}, not {config.family}")
    if levers.dtype != "bfloat16":
        raise ValueError(f"step=native needs dtype=bfloat16, not {levers.dtype}")
    if levers.kv != "dense" or levers.cache == "paged":
        raise ValueError(
            f"step=native on a CPU has no code for kv={levers.kv} with cache={levers.cache}: leave "
            "kv=dense and cache=static"
        )
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads' width": config.num_heads * config.head_dim,
        "head_dim": config.head_dim,
    }
    for name, size in sizes.items():
        if size % 32:
            raise ValueError(f"step=native needs a {name} of a multiple of 32, not {size}")


def _check_soft(soft: SoftTokens | None) -> None:
    """Refuse what no family that is decoded here was made for."""
    if soft is not None:
        raise ValueError("step=native takes no soft tokens: its families read text only")


def native_functions() -> Any:
    """Build `step.cpp` and declare what it exports."""
    c = build("cpu")
    c.decoder_new.argtypes, c.decoder_new.restype = [_POINTER], _POINTER
    c.decoder_free.argtypes, c.decoder_free.restype = [_POINTER], None
    c.decoder_path.argtypes, c.decoder_path.restype = [_POINTER], _INT
    c.decoder_forward.argtypes = [_POINTER, _POINTER, _INT, _INT, _INT, _POINTER, _POINTER]
    c.decoder_forward.restype = None
    c.decoder_decode.argtypes = [_POINTER, _INT, _INT, _INT, _POINTER]
    c.decoder_decode.restype = None
    c.decoder_profile.argtypes = [_POINTER, _INT, _INT, _INT, _POINTER, _POINTER]
    c.decoder_profile.restype = None
    c.matrix_multiply.argtypes = [_POINTER, _POINTER, _INT, _INT, _POINTER]
    c.matrix_multiply.restype = None
    return c
