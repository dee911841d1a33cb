"""Gemma 4's assistant: a few small layers that guess from what the model itself has computed.

Each layer looks at the keys and values of the model's last layer of the same kind, always from the
position of the newest token. What goes in is that token's embedding beside the model's output that
it was chosen from; what comes out is a guess, and an output to guess the next one from. Only words
of the likeliest clusters are scored. transformers' `Gemma4AssistantForCausalLM` with
`SinglePositionMultiTokenCandidateGenerator` is the specification; here no layer sees the keys of a
guess that was rejected.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .attention import attend
from .checkpoint import Checkpoint
from .config import ModelConfig, Rope, read_config
from .gemma4 import Gemma4Layer
from .levers import Levers
from .model import Model
from .norm import make_norm
from .rope import RotaryTable


class Assistant:
    """Guesses for `target`, whose caches it reads. Satisfies `Drafter`.

    Args:
        whole_target: the target's configuration as it was trained, whatever its levers leave of it.

    Raises:
        ValueError: made for a model of another width, or of other key/value heads.
    """

    def __init__(self, folder: Path, target: Model, whole_target: ModelConfig) -> None:
        raw = json.loads((folder / "config.json").read_text())
        self.config, self._target = read_config(folder), target
        config, plain = self.config, Levers(attention="grouped")
        ckpt = Checkpoint(folder, target.embedding.dtype, target.device)
        self._caches = [_source(whole_target, config, i) for i in range(config.num_layers)]
        self.layers = [Gemma4Layer(ckpt, i, config, plain) for i in range(config.num_layers)]
        self.norm = make_norm(ckpt, "model.norm", config, plain)
        self.words = ckpt.take("model.embed_tokens.weight")
        self._before = ckpt.take("pre_projection.weight")
        self._after = ckpt.take("post_projection.weight")
        if self._before.shape[1] != 2 * target.config.hidden_size:
            raise ValueError(
                f"the assistant is made for a hidden_size of {self._before.shape[1] // 2}, this "
                f"model has {target.config.hidden_size}"
            )
        self.clusters: Tensor | None = None
        if raw.get("use_ordered_embeddings"):
            self.centroids = ckpt.take("masked_embedding.centroids.weight")
            ordering = ckpt.take_integers("masked_embedding.token_ordering")
            self.clusters = ordering.view(self.centroids.shape[0], -1)
            self._num_clusters = int(raw.get("centroid_intermediate_top_k", 32))
        self._tables = {
            rope: RotaryTable(rope, target.max_context, ckpt.dtype, ckpt.device)
            for rope in dict.fromkeys(config.ropes)
        }

    def begin(self, prompt: list[int]) -> None:
        """Nothing: what it looks at is the model's."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Nothing: what it looks at is the model's."""

    def guess(self, last: int, row: Tensor, most: int) -> list[int]:
        """Return `most` guesses, one from the other."""
        guesses: list[Tensor] = []
        word = torch.tensor([last], device=self._target.device)
        row = row[None]
        position = min(self._target.length, self._target.max_context - 1)
        angles = {rope: table.at(position, 1) for rope, table in self._tables.items()}
        # What the model has cached stays as it is meanwhile, and may have to be put together.
        held = {source: self._target.caches[source].contents() for source in set(self._caches)}
        for _ in range(most):
            out = self._decode(torch.cat((self._embedded(word), row), -1), angles, held)
            word, row = self._likeliest(out), F.linear(out, self._after)
            guesses.append(word)
        found: list[int] = torch.cat(guesses).tolist() if guesses else []
        return found

    def _embedded(self, word: Tensor) -> Tensor:
        """Return what the model makes of a word [1] before its first layer, [1, hidden]."""
        scale = self._target.embedding_scale
        assert scale is not None  # every Gemma's
        return F.embedding(word, self._target.embedding) * scale

    def _decode(
        self,
        inputs: Tensor,
        angles: dict[Rope, tuple[Tensor, Tensor]],
        held: dict[int, tuple[Tensor, Tensor]],
    ) -> Tensor:
        config, x = self.config, F.linear(inputs, self._before)
        for index, layer in enumerate(self.layers):
            window = config.windows[index]
            queries, _ = layer.before_attention(x, *angles[config.ropes[index]])
            keys, values = held[self._caches[index]]
            attended = attend(
                queries,
                keys,
                values,
                scale=config.attention_scale,
                window=None if window is None else window + 1,  # before it, and not among them
                grouped=True,
            )
            x = layer.after_attention(x, attended)
        return self.norm(x)

    def _likeliest(self, out: Tensor) -> Tensor:
        """Return the likeliest word [1] of the likeliest clusters."""
        if self.clusters is None:
            return F.linear(out, self.words).argmax(-1)
        nearest = F.linear(out, self.centroids)[0].topk(self._num_clusters).indices
        words = self.clusters[nearest].flatten()
        return words[F.linear(out, self.words[words]).argmax(-1)]


def _source(target: ModelConfig, config: ModelConfig, index: int) -> int:
    """Return the target's layer whose keys and values a layer of the assistant reads."""
    sliding = config.windows[index] is not None
    own = zip(target.kv_sources, target.windows, strict=True)
    found = [
        i for i, (source, w) in enumerate(own) if source is None and (w is not None) == sliding
    ]
    if not found:
        raise ValueError(f"the assistant's layer {index} finds no layer of its kind in this model")
    heads = (target.kv_heads[found[-1]], target.head_dims[found[-1]])
    if heads != (config.kv_heads[index], config.head_dims[index]):
        raise ValueError(
            f"the assistant's layer {index} needs {config.kv_heads[index]} key/value heads of "
            f"{config.head_dims[index]}, this model has {heads[0]} of {heads[1]}"
        )
    return found[-1]
