"""Token ids to logits: embedding, layers around their caches, head."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .attention import attend
from .cache import make_caches
from .checkpoint import Checkpoint
from .config import ModelConfig
from .gemma3 import Gemma3Layer
from .gemma4 import Gemma4Layer
from .levers import Levers
from .linear import make_linear
from .llama import LlamaLayer
from .lossy import kept_layers, kept_words, narrowed, widened
from .norm import make_norm
from .per_layer import PerLayerInputs
from .rope import RotaryTable
from .sequence import SoftTokens, check_tokens, put_soft

AnyLayer = LlamaLayer | Gemma3Layer | Gemma4Layer
_LAYERS: dict[str, type[AnyLayer]] = {
    "llama": LlamaLayer,
    "gemma3": Gemma3Layer,
    "gemma4": Gemma4Layer,
}


class Model:
    """A decoder with its caches. `length` is the number of positions they hold.

    Attributes:
        normed: what the latest logits were made of, [rows, hidden].
        kept: which of the model's layers `layers` are.
    """

    normed: Tensor

    def __init__(
        self, ckpt: Checkpoint, config: ModelConfig, levers: Levers, max_context: int
    ) -> None:
        config = narrowed(config, levers)
        self.config, self.levers, self.max_context = config, levers, max_context
        self.device = ckpt.device
        layer_type = _LAYERS[config.family]
        self.embedding = ckpt.take("model.embed_tokens.weight")
        # Gemma multiplies embeddings by √hidden, rounded to the checkpoint's dtype.
        scale = torch.tensor(math.sqrt(config.hidden_size), dtype=ckpt.dtype, device=ckpt.device)
        self.embedding_scale = scale if config.family != "llama" else None
        self.per_layer = PerLayerInputs(ckpt, config, levers) if config.per_layer_size else None
        # Layers at the end that read others' keys and values add nothing to any cache.
        self._first_without_own_keys = 1 + max(
            index for index, source in enumerate(config.kv_sources) if source is None
        )
        self._nothing: tuple[tuple[Tensor, ...], ...] = ((),) * config.num_layers
        self.kept = kept_layers(config, levers)
        self.layers = [layer_type(ckpt, i, config, levers) for i in self.kept]
        self.norm = make_norm(ckpt, "model.norm", config, levers)
        words = self.embedding if config.tied_head else ckpt.take("lm_head.weight")
        self.head = make_linear(words[: kept_words(config, levers)], levers.head)
        self.tables = {
            rope: RotaryTable(rope, max_context, ckpt.dtype, ckpt.device)
            for rope in dict.fromkeys(config.ropes)
        }
        self._halves: list[tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]] = [
            (layer.before_attention, layer.after_attention) for layer in self.layers
        ]
        # Only single-token steps are compiled: a prompt's length would be a shape of its own.
        self._step_halves = (
            [(torch.compile(b), torch.compile(a)) for b, a in self._halves]
            if levers.compile == "layer"
            else self._halves
        )
        self.reset()

    def reset(self) -> None:
        """Forget every position."""
        self.caches = make_caches(
            self.config, self.levers, self.embedding.dtype, self.device, self.max_context
        )
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        for cache in self.caches:
            cache.truncate(length)
        self.length = length

    def __call__(
        self, tokens: list[int], *, last_only: bool = True, soft: SoftTokens | None = None
    ) -> Tensor:
        """Append `tokens` and return the logits that follow.

        Args:
            soft: embeddings instead of those of some of the tokens.

        Returns:
            [1, vocab_size], or [len(tokens), vocab_size] when `last_only` is false.

        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than `max_context`.
        """
        return self.logits_of(self.hidden(tokens, soft, last_only=last_only))

    def hidden(
        self, tokens: list[int], soft: SoftTokens | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Append `tokens` and return the last layer's output for each, [len(tokens), hidden].

        Args:
            last_only: for the last token alone, [1, hidden].

        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than `max_context`.
        """
        check_tokens(tokens, self.config.vocab_size, self.length, self.max_context)
        ids = torch.tensor(tokens, device=self.device)
        narrows = last_only and len(tokens) > 1
        last = torch.tensor([len(tokens) - 1], device=self.device) if narrows else None
        return self._hidden(ids, soft, last)

    def _hidden(
        self,
        ids: Tensor,
        soft: SoftTokens | None,
        last: Tensor | None,
        *,
        filled_up: bool = False,
    ) -> Tensor:
        """Append tokens [rows]; with `last` [1], return that one's output alone.

        Args:
            filled_up: others come after `last` in `ids`, which nothing returned here looks at. The
                caches hold them, until their lengths are set back.
        """
        config, count = self.config, len(ids)
        grouped = self.levers.attention == "grouped"
        x = F.embedding(ids, self.embedding)
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        if soft is not None:
            x = put_soft(x, soft)
            # What isn't a token has no row of its own in the table of per-layer embeddings.
            ids[soft[0].to(ids.device)] = config.pad_token
        angles = {rope: table.at(self.length, count) for rope, table in self.tables.items()}
        extras = self._nothing
        if self.per_layer is not None:
            extras = tuple((rows,) for rows in self.per_layer(ids, x))
        narrow_at = config.num_layers if last is None else self._first_without_own_keys
        narrowed, here = False, None
        halves = self._step_halves if count == 1 else self._halves
        for index, (before, after) in zip(self.kept, halves, strict=True):
            # Nobody looks at what these layers make of the other tokens.
            if last is not None and not narrowed and index >= narrow_at:
                x, narrowed, here = x[last], True, self.length + last if filled_up else None
                extras = tuple(tuple(e[last] for e in own) for own in extras)
                angles = {rope: (cos[last], sin[last]) for rope, (cos, sin) in angles.items()}
            queries_keys, values = before(x, *angles[config.ropes[index]])
            keys, values = self.caches[index].extend(
                queries_keys[:, config.num_heads :].transpose(0, 1), values.transpose(0, 1)
            )
            attended = attend(
                queries_keys[:, : config.num_heads],
                keys,
                values,
                scale=config.attention_scale,
                window=config.windows[index],
                grouped=grouped,
                here=here,
            )
            x = after(x, attended, *extras[index])
        self.length += count
        return x if last is None or narrowed else x[last]

    def logits_of(self, rows: Tensor) -> Tensor:
        """Return the logits [rows, vocab_size] of the last layer's output [rows, hidden]."""
        self.normed = self.norm(rows)
        return self.capped(self.head(self.normed))

    def capped(self, logits: Tensor) -> Tensor:
        """Return logits of all words, squeezed as the model was trained with, if it was."""
        cap = self.config.logit_cap
        capped = logits if cap is None else torch.tanh(logits / cap) * cap
        return widened(capped, self.config.vocab_size)

    def choose(
        self, tokens: list[int], *, last_only: bool = True, soft: SoftTokens | None = None
    ) -> list[int]:
        """Append `tokens` and return the likeliest next one, after the last or after each.

        Raises:
            ValueError: as calling the model does.
        """
        chosen: list[int] = self(tokens, last_only=last_only, soft=soft).argmax(-1).tolist()
        return chosen

    def decode(self, token: int, count: int) -> list[int]:
        """Append `token` and `count` - 1 greedy ones after it; return all `count` choices.

        Raises:
            ValueError: as calling the model does.
        """
        chosen: list[int] = []
        while len(chosen) < count:
            chosen += self.choose([chosen[-1] if chosen else token])
        return chosen

    def profile(self, token: int, count: int) -> dict[str, float]:
        """Return seconds by component for decoding `count` tokens; here one: the whole step."""
        begun = time.perf_counter()
        self.decode(token, count)
        return {"step": time.perf_counter() - begun}
