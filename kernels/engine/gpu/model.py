"""The whole decode step on a GPU: fused kernels, replayed as one CUDA graph, tokens fed back.

A prompt goes through the eager layers, whose matrices are dense copies for the moment. A short one
is filled up to one of a few sizes, so that it, too, is one CUDA graph: launched one by one, the
layers' small operations keep the host longer than the GPU (55 ms for 128 tokens of Gemma 4 E4B). Up
to eight tokens at once (a decoded one, or a draft to verify) go through the packed kernels. Both
share the key/value cache.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from ..cache import PagedCache, SharedCache, StaticCache, storage
from ..checkpoint import Checkpoint
from ..config import ModelConfig, Rope
from ..gemma4 import Gemma4Layer
from ..levers import Levers
from ..linear import DenseLinear, Linear
from ..llama import LlamaLayer
from ..model import AnyLayer, Model
from ..norm import RMSNorm
from ..per_layer import PerLayerGate
from ..rope import RotaryTable
from ..sequence import SoftTokens, check_tokens
from .arguments import NormArgs
from .embedding import embed, per_layer_inputs
from .launches import GROUPS, HEAD_DIMS, MOST, SPLITS, Launch, Multiplier
from .packed import PackedLinear

_FAMILIES = ("llama", "gemma4")
_PROMPT_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)  # tokens; one graph each
_REPLAYS = 10  # of a component when it is timed; the quickest counts


class GpuModel(Model):
    """A decoder with its caches on a GPU. `length` is the number of positions they hold.

    Raises:
        ValueError: a family, dtype or size that the kernels have no code for.
    """

    def __init__(
        self, ckpt: Checkpoint, config: ModelConfig, levers: Levers, max_context: int
    ) -> None:
        _check(config, levers)
        cache = "paged" if levers.cache == "paged" else "static"
        eager = {"weights": "dense", "head": "dense", "cache": cache, "fuse": "qkv+gate-up"}
        super().__init__(ckpt, config, replace(levers, attention="grouped", **eager), max_context)
        self._step, self._schemes = levers.step, (levers.weights, levers.head)
        # Before sm_90 a kernel can't begin while the one before it ends.
        self._dependent = torch.cuda.get_device_capability(self.device) >= (9, 0)
        self._multiplier = Multiplier(self.device, config.norm_eps, dependent=self._dependent)
        self._pack()
        self._floats: dict[int, Tensor] = {}
        self._angles = {rope: self._half_angles(rope) for rope in dict.fromkeys(config.ropes)}
        self._buffers = self._allocate()
        self._plans: dict[tuple[int, str], list[Launch]] = {}
        self._graphs: dict[tuple[int, str], torch.cuda.CUDAGraph] = {}
        self.prompt_memory = torch.cuda.graph_pool_handle()  # one prompt at a time is read
        # Pages are to come as the sequence grows, and those graphs would need them all.
        records = levers.step == "graph" and levers.cache != "paged"
        self._prompts = self._recorded_prompts() if records else {}

    def reset(self) -> None:
        """Forget every position; the caches stay where they are, for the graphs' sake."""
        if hasattr(self, "caches"):
            self.truncate(0)
        else:
            super().reset()

    def __call__(
        self, tokens: list[int], *, last_only: bool = True, soft: SoftTokens | None = None
    ) -> Tensor:
        """Append `tokens` and return the logits that follow, as `Model` does."""
        check_tokens(tokens, self.config.vocab_size, self.length, self.max_context)
        steps = self._steps(tokens, "logits", soft, last_only=last_only)
        return self.capped(torch.cat([*steps]))

    def choose(
        self, tokens: list[int], *, last_only: bool = True, soft: SoftTokens | None = None
    ) -> list[int]:
        """Append `tokens` and return the likeliest next one, after the last or after each."""
        check_tokens(tokens, self.config.vocab_size, self.length, self.max_context)
        steps = self._steps(tokens, "choices", soft, last_only=last_only)
        chosen: list[int] = torch.cat([*steps]).tolist()
        return chosen

    def hidden(
        self, tokens: list[int], soft: SoftTokens | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Append `tokens` and return the last layer's output, as `Model` does."""
        prompt = next((one for size, one in self._prompts.items() if size >= len(tokens)), None)
        from_start = self.length == 0 and len(tokens) > 1
        if prompt is None or not from_start or not last_only or soft is not None:
            return super().hidden(tokens, soft, last_only=last_only)
        check_tokens(tokens, self.config.vocab_size, self.length, self.max_context)
        out = prompt.read(tokens)
        self._set_length(len(tokens))
        return out

    def decode(self, token: int, count: int) -> list[int]:
        """Append `token` and `count` - 1 greedy ones after it; return all `count` choices.

        The host asks for all steps at once and waits for the last.
        """
        check_tokens([token], self.config.vocab_size, self.length + count - 1, self.max_context)
        self._reserve(self.length + count)
        self._place([token])
        self._buffers["count"].zero_()
        for _ in range(count):
            self._replay(1, "feed-back")
        self._set_length(self.length + count)
        history: list[int] = self._buffers["history"][:count].tolist()
        return history

    def profile(self, token: int, count: int) -> dict[str, float]:
        """Return seconds by component for `count` tokens, each component replayed by itself.

        Alone, a kernel doesn't begin while another ends: the sum is a little more than a step.
        """
        check_tokens([token], self.config.vocab_size, self.length + count - 1, self.max_context)
        self._reserve(self.length + count)
        self._place([token])
        launches = [one for one in self.plan(1, "choices") if one.label != "choose"]
        times = {}
        for label in dict.fromkeys(launch.label for launch in launches):
            graph = self._capture([launch for launch in launches if launch.label == label])
            best_ms = float("inf")
            for _ in range(_REPLAYS):
                begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begun.record()
                graph.replay()
                ended.record()
                torch.cuda.synchronize()
                best_ms = min(best_ms, begun.elapsed_time(ended))
            times[label] = count * best_ms / 1e3
        return times

    def plan(self, m: int, output: str) -> list[Launch]:
        """Return the launches of a step with m tokens.

        Args:
            output: "logits", "choices" or "feed-back" (one token, fed back on the device);
                "head-logits" and "head-choices" begin with the last layer's output.
        """
        if (m, output) not in self._plans:
            self._plans[m, output] = self._planned(m, output)
        return self._plans[m, output]

    def _recorded_prompts(self) -> dict[int, "_Prompt"]:
        """Return graphs by the tokens they take, the smallest first; nobody waits for them yet."""
        prompts: dict[int, _Prompt] = {}
        for size in _PROMPT_SIZES:
            if size > self.max_context:
                break
            try:
                prompts[size] = _Prompt(self, size)
            except torch.cuda.OutOfMemoryError:  # longer ones then go launch by launch
                break
        self.reset()
        return prompts

    def read_filled_up(self, ids: Tensor, last: Tensor) -> Tensor:
        """Read tokens from position 0 on; return the last layer's output [1, hidden] at `last`."""
        self._set_length(0)
        return self._hidden(ids, None, last, filled_up=True)

    def _place(self, tokens: list[int]) -> None:
        self._buffers["tokens"][: len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self._buffers["position"].fill_(self.length)

    def _steps(
        self, tokens: list[int], output: str, soft: SoftTokens | None, *, last_only: bool
    ) -> Iterator[Tensor]:
        """Append `tokens`; yield the answers, to the last or to each, in groups of rows."""
        if len(tokens) <= MOST and soft is None:
            self._reserve(self.length + len(tokens))
            self._place(tokens)
            self._replay(len(tokens), output)
            self._set_length(self.length + len(tokens))
            asked = slice(len(tokens) - 1 if last_only else 0, len(tokens))
            self.normed = self._buffers["normed"][asked]
            yield self._buffers[output][asked].clone()
            return
        for some in torch.split(self.hidden(tokens, soft, last_only=last_only), MOST):
            self._buffers["residual"][: len(some)] = some
            self._replay(len(some), f"head-{output}")
            self.normed = self._buffers["normed"][: len(some)]
            yield self._buffers[output][: len(some)].clone()

    def _set_length(self, length: int) -> None:
        self.length = length
        for held in self._storages():
            held.length = length

    def _reserve(self, length: int) -> None:
        """Have room for `length` positions."""
        for held in self._storages():
            if isinstance(held, PagedCache):
                held.reserve(length)

    def _storages(self) -> Iterator[StaticCache | PagedCache]:
        return (storage(cache) for cache in self.caches if not isinstance(cache, SharedCache))

    def _replay(self, m: int, output: str) -> None:
        launches = self.plan(m, output)
        if self._step == "native":
            for launch in launches:
                launch.run()
            return
        if (m, output) not in self._graphs:
            self._graphs[m, output] = self._capture(launches)
        self._graphs[m, output].replay()

    def _capture(self, launches: list[Launch]) -> torch.cuda.CUDAGraph:
        """Record the launches; what they change while Triton compiles them is put back."""
        names = ("tokens", "position", "history", "count")
        before = {name: self._buffers[name].clone() for name in names}
        for launch in launches:
            launch.run()
        torch.cuda.synchronize()
        for name in names:
            self._buffers[name].copy_(before[name])
        graph = torch.cuda.CUDAGraph()
        with _recording(graph):
            for launch in launches:
                launch.run()
        return graph

    def _pack(self) -> None:
        """Replace the layers' dense matrices by packed ones, one after the other."""
        scheme, head_scheme = self._schemes

        def packed(linear: Linear, *, interleave: bool = False) -> PackedLinear:
            assert isinstance(linear, DenseLinear)
            return PackedLinear(linear.weight, scheme, interleave=interleave)

        for layer in self.layers:
            layer.qkv.qkv = packed(layer.qkv.qkv)
            layer.out = packed(layer.out)
            layer.mlp.gate_up = packed(layer.mlp.gate_up, interleave=True)
            layer.mlp.down = packed(layer.mlp.down)
            if isinstance(layer, Gemma4Layer) and layer.gate is not None:
                layer.gate.down, layer.gate.up = packed(layer.gate.down), packed(layer.gate.up)
        if self.per_layer is not None:
            self.per_layer.projection = packed(self.per_layer.projection)
        assert isinstance(self.head, DenseLinear)
        self.head = PackedLinear(self.head.weight, head_scheme)

    def _half_angles(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [max_context, head_dim / 2], in float32."""
        table = RotaryTable(rope, self.max_context, torch.float32, self.device)
        half = rope.head_dim // 2
        return table.cos[:, 0, :half].contiguous(), table.sin[:, 0, half:].contiguous()

    def _float(self, norm: RMSNorm | None) -> Tensor | None:
        """Return a norm's weight in float32, made once."""
        if norm is None:
            return None
        key = norm.weight.data_ptr()
        if key not in self._floats:
            self._floats[key] = norm.weight.float()
        return self._floats[key]

    def _allocate(self) -> dict[str, Tensor]:
        config, device = self.config, self.device
        heads = [config.num_heads * d for d in config.head_dims]
        both = zip(heads, config.kv_heads, config.head_dims, strict=True)
        widest = max(width + 2 * kv * d for width, kv, d in both)
        teams = self._multiplier.teams(_packed(self.head))
        extra = config.num_layers * max(config.per_layer_size, 1)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        half, whole = torch.bfloat16, torch.int32
        return {
            "tokens": zeros(MOST, dtype=whole),
            "position": zeros(1, dtype=whole),
            "residual": zeros(MOST, config.hidden_size),
            "residual-2": zeros(MOST, config.hidden_size),
            "halves": zeros(MOST, config.hidden_size, dtype=half),
            "delta": zeros(2, MOST, config.hidden_size),
            "normed": zeros(MOST, config.hidden_size, dtype=half),
            "qkv": zeros(MOST, widest),
            "attended": zeros(MOST, max(heads), dtype=half),
            "gated": zeros(MOST, max(config.intermediate_sizes), dtype=half),
            "per-layer-gated": zeros(MOST, max(config.per_layer_size, 1), dtype=half),
            "projected": zeros(MOST, extra),
            "per-layer": zeros(MOST, extra),
            "part": zeros(MOST, SPLITS, max(heads)),
            "most": zeros(MOST, SPLITS, config.num_heads),
            "total": zeros(MOST, SPLITS, config.num_heads),
            "arrived": zeros(MOST, max(config.kv_heads), dtype=whole),
            "best": zeros(teams, MOST),
            "best_at": zeros(teams, MOST, dtype=whole),
            "choices": zeros(MOST, dtype=whole),
            "history": zeros(self.max_context, dtype=whole),
            "count": zeros(1, dtype=whole),
            "logits": zeros(MOST, _packed(self.head).rows),
        }

    def _planned(self, m: int, output: str) -> list[Launch]:
        buffers, make = self._buffers, self._multiplier
        if output.startswith("head-"):  # the rest was done by the eager layers
            norm = make.norm_of(buffers["residual"], buffers["normed"], norm=self._float(self.norm))
            return [make.norm(norm, m), *self._answer(m, output.removeprefix("head-"))]
        launches, silu = self._embedding(m), self.config.family == "llama"
        delta = buffers["delta"]
        residual = _Residual(self._multiplier, m, buffers)
        for index, layer in zip(self.kept, self.layers, strict=True):
            before, after = _sandwich(layer)
            qkv, out = _packed(layer.qkv.qkv), _packed(layer.out)
            gate_up, down = _packed(layer.mlp.gate_up), _packed(layer.mlp.down)
            launches += [
                *residual.into(
                    partial(make.store, "qkv", qkv, m, y=buffers["qkv"]),
                    self._float(layer.input_norm),
                ),
                self._attention(m, index, layer),
                make.add("attention-out", out, m, buffers["attended"], delta),
            ]
            residual.add(out, self._float(before))
            launches += [
                *residual.into(
                    partial(make.gated, "gate-up", gate_up, m, out=buffers["gated"], silu=silu),
                    self._float(layer.mlp_norm),
                ),
                make.add("down", down, m, buffers["gated"], delta),
            ]
            residual.add(down, self._float(after))
            if isinstance(layer, Gemma4Layer):
                if layer.gate is not None:
                    launches += self._gate(m, index, layer.gate, residual)
                    residual.add(_packed(layer.gate.up), self._float(layer.gate.norm))
                residual.scale(float(layer.scalar))
        # The head has more blocks than can be there at once: they don't norm each for itself.
        launches += [make.norm(residual.moved(self._float(self.norm)), m), *self._answer(m, output)]
        return launches

    def _answer(self, m: int, output: str) -> list[Launch]:
        buffers, make, head = self._buffers, self._multiplier, _packed(self.head)
        if output == "logits":
            return [make.store("head", head, m, buffers["normed"], buffers["logits"])]
        return [
            make.best("head", head, m, buffers["normed"], buffers["best"], buffers["best_at"]),
            make.choose(make.teams(head), m, buffers, feed_back=output == "feed-back"),
        ]

    def _gate(self, m: int, index: int, gate: PerLayerGate, residual: "_Residual") -> list[Launch]:
        buffers, make, size = self._buffers, self._multiplier, self.config.per_layer_size
        own = buffers["per-layer"].view(-1)[index * size :]
        stride, gated = self.config.num_layers * size, buffers["per-layer-gated"]
        down, up = _packed(gate.down), _packed(gate.up)
        return [
            *residual.into(
                partial(
                    make.per_layer, "per-layer", down, m, out=gated, partner=own, stride=stride
                ),
                None,
            ),
            make.add("per-layer", up, m, gated, buffers["delta"]),
        ]

    def _embedding(self, m: int) -> list[Launch]:
        buffers, config = self._buffers, self.config
        scale = 1.0 if self.embedding_scale is None else float(self.embedding_scale)
        block = 512
        grid = (m, triton.cdiv(config.hidden_size, block))

        def run() -> None:
            embed[grid](
                buffers["tokens"], self.embedding, scale, buffers["residual"], buffers["halves"],
                HIDDEN=config.hidden_size, BLOCK=block, DEPENDENT=self._dependent,
                launch_pdl=self._dependent,
            )  # fmt: skip

        launches = [Launch("embedding", 2 * config.hidden_size, run)]
        if self.per_layer is None:
            return launches
        inputs, size, layers = self.per_layer, config.per_layer_size, config.num_layers
        weight = self._float(inputs.norm)

        def run_per_layer() -> None:
            per_layer_inputs[(m, layers)](
                buffers["tokens"], inputs.table, buffers["projected"], weight,
                buffers["per-layer"], inputs.table_scale, inputs.projection_scale, config.norm_eps,
                LAYERS=layers, SIZE=size, BLOCK=triton.next_power_of_2(size),
                DEPENDENT=self._dependent, launch_pdl=self._dependent,
            )  # fmt: skip

        return [
            *launches,
            self._multiplier.store(
                "per-layer", _packed(inputs.projection), m, buffers["halves"], buffers["projected"]
            ),
            Launch("per-layer", 2 * layers * size, run_per_layer),
        ]

    def _attention(self, m: int, index: int, layer: AnyLayer) -> Launch:
        config, buffers = self.config, self._buffers
        source = config.kv_sources[index]
        cache = self.caches[index if source is None else source]
        shared = source is not None
        query_norm = key_norm = None
        if not isinstance(layer, LlamaLayer):
            query_norm = self._float(layer.query_norm)
            key_norm = None if shared else self._float(layer.key_norm)
        return self._multiplier.attention(
            m,
            buffers,
            cache,
            self._angles[config.ropes[index]],
            query_norm=query_norm,
            key_norm=key_norm,
            kv_heads=config.kv_heads[index],
            group=config.num_heads // config.kv_heads[index],
            head_dim=config.head_dims[index],
            window=config.windows[index] or 0,
            max_context=self.max_context,
            scale=config.attention_scale,
            shared=shared,
            value_norm=config.family == "gemma4",
        )


class _Prompt:
    """One CUDA graph of the eager layers for prompts of at most `size` tokens, from position 0 on.

    What fills it up comes after the prompt, where causal attention doesn't look; its keys and
    values are overwritten by what follows the prompt.
    """

    def __init__(self, model: GpuModel, size: int) -> None:
        self._ids = torch.zeros(size, dtype=torch.int64, device=model.device)
        self._last = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._graph = torch.cuda.CUDAGraph()
        model.read_filled_up(self._ids, self._last)  # what sets up libraries can't be recorded
        torch.cuda.synchronize()
        with _recording(self._graph, pool=model.prompt_memory):
            self._out = model.read_filled_up(self._ids, self._last)

    def read(self, tokens: list[int]) -> Tensor:
        """Return the last layer's output [1, hidden] for the last of these tokens."""
        self._ids[: len(tokens)] = torch.tensor(tokens)
        self._last.fill_(len(tokens) - 1)
        self._graph.replay()
        return self._out.clone()  # the next prompt's goes to the same place


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """Record a graph. Another one that the garbage collector frees meanwhile would end that."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, **options):
            yield
    finally:
        if collects:
            gc.enable()


class _Residual:
    """The residual stream while a step is laid out: what is to be added, and where the sum goes."""

    def __init__(self, make: Multiplier, m: int, buffers: dict[str, Tensor]) -> None:
        self._make, self._m, self._buffers = make, m, buffers
        self._now, self._next = buffers["residual"], buffers["residual-2"]
        self._pending: dict[str, Any] | None = None
        self._scale = 1.0

    def add(self, w: PackedLinear, delta_norm: Tensor | None) -> None:
        """Add what `w` leaves in `delta`, through a norm if there is one, when it is looked at."""
        delta, halved = self._buffers["delta"], self._make.halved(w)
        self._pending = {"delta": delta, "halved": halved, "delta_norm": delta_norm}

    def scale(self, factor: float) -> None:
        """Scale the sum when it is next looked at."""
        self._scale = factor

    def moved(self, norm: Tensor | None) -> NormArgs:
        """Add what is pending; return what norms the sum."""
        out = self._buffers["normed"]
        if self._pending is None:
            return self._make.norm_of(self._now, out, norm=norm)
        keep = self._next
        args = self._make.norm_of(
            self._now, out, norm=norm, keep=keep, scale=self._scale, **self._pending
        )
        self._now, self._next, self._pending, self._scale = keep, self._now, None, 1.0
        return args

    def into(self, multiply: Callable[..., Launch], norm: Tensor | None) -> list[Launch]:
        """Return the launches that add what is pending, norm the sum and multiply that (`x`)."""
        args = self.moved(norm)
        if self._m == 1:  # each block of the matrix norms it for itself
            return [multiply(x=args)]
        return [self._make.norm(args, self._m), multiply(x=self._buffers["normed"])]


def _sandwich(layer: AnyLayer) -> tuple[RMSNorm | None, RMSNorm | None]:
    """Return the norms after attention and after the feed-forward layer, which Llama lacks."""
    if isinstance(layer, LlamaLayer):
        return None, None
    return layer.attention_norm, layer.output_norm


def _packed(linear: Linear) -> PackedLinear:
    assert isinstance(linear, PackedLinear)
    return linear


def _check(config: ModelConfig, levers: Levers) -> None:
    if config.family not in _FAMILIES:
        raise ValueError(f"step={levers.step} decodes {' and '.join(_FAMILIES)} on a GPU")
    if levers.dtype != "bfloat16":
        raise ValueError(f"step={levers.step} needs dtype=bfloat16, not {levers.dtype}")
    if any(config.values_are_keys):
        raise ValueError(f"step={levers.step} has no code for values that are the keys")
    if config.hidden_size > 4096:
        raise ValueError(f"step={levers.step} needs a hidden_size of at most 4096")
    for head_dim, kv_heads in zip(config.head_dims, config.kv_heads, strict=True):
        group = config.num_heads // kv_heads
        if head_dim not in HEAD_DIMS or group not in GROUPS:
            raise ValueError(
                f"step={levers.step} has no attention for {group} query heads of {head_dim} to a "
                "key/value head"
            )
