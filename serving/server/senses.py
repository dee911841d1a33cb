"""What a Gemma 4 sees and hears with: transformers' encoders, whose output stands in a prompt.

The engine decodes text. Here pictures and sounds become *soft tokens*, embeddings of the decoder's
width; in the prompt each has a placeholder. Preparing pixels and spectrograms, and both encoders,
are transformers' own; only the towers' weights are read, not the decoder's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import RequestError
from .media import Conversation

_FAMILY = "gemma4"


@dataclass(frozen=True)
class Perceived:
    """A prompt with placeholders, and what is to be encoded for them.

    Attributes:
        pixels: `pixel_values` and `image_position_ids` of all pictures; None without.
        waves: `input_features` and `input_features_mask` of all sounds; None without.
    """

    tokens: list[int]
    pixels: dict[str, Tensor] | None
    waves: dict[str, Tensor] | None


class Senses:
    """Reads conversations that have pictures and sounds in them.

    Raises:
        ValueError: the checkpoint's towers aren't those of its configuration, or a package that
            decodes pictures or sounds isn't installed.
    """

    def __init__(self, model_dir: Path, tokenizer: Any, device: torch.device | str) -> None:
        from transformers import Gemma4Config
        from transformers.models.gemma4 import modeling_gemma4 as gemma4

        _check_packages()
        config = Gemma4Config.from_pretrained(model_dir)
        if config.text_config.use_bidirectional_attention == "vision":
            raise ValueError(
                "config.json: pictures of a model with use_bidirectional_attention='vision' are "
                "attended to in both directions, which no engine here does"
            )
        self._tokenizer, self._device = tokenizer, device
        self._image_id, self._audio_id = config.image_token_id, config.audio_token_id
        self._eyes = self._ears = None
        if config.vision_config is not None:
            from transformers.models.gemma4.image_processing_pil_gemma4 import (
                Gemma4ImageProcessorPil,
            )

            self._images = Gemma4ImageProcessorPil.from_pretrained(model_dir)
            self._eyes = self._loaded(
                model_dir, "vision", gemma4.Gemma4VisionModel, config.vision_config, config
            )
        if config.audio_config is not None:
            from transformers.models.gemma4.feature_extraction_gemma4 import (
                Gemma4AudioFeatureExtractor,
            )

            self._sounds = Gemma4AudioFeatureExtractor.from_pretrained(model_dir)
            self._ears = self._loaded(
                model_dir, "audio", gemma4.Gemma4AudioModel, config.audio_config, config
            )

    def read(self, conversation: Conversation) -> Perceived:
        """Tokenize a conversation, with a placeholder for each soft token.

        Raises:
            RequestError: a sense that this model hasn't, or text with a placeholder in it.
        """
        tokenizer, pixels, waves = self._tokenizer, None, None
        images, sounds = [], []
        if conversation.images:
            self._need(self._eyes, "image")
            seen = self._images(conversation.images, return_tensors="pt")
            pixels = {name: seen[name] for name in ("pixel_values", "image_position_ids")}
            for count in seen["num_soft_tokens_per_image"]:
                placeholders = tokenizer.image_token * int(count)
                images.append(f"{tokenizer.boi_token}{placeholders}{tokenizer.eoi_token}")
        if conversation.sounds:
            self._need(self._ears, "audio")
            heard = self._sounds(
                conversation.sounds,
                sampling_rate=self._sounds.sampling_rate,
                padding="longest",
                return_tensors="pt",
            )
            waves = {name: heard[name] for name in ("input_features", "input_features_mask")}
            for mask in waves["input_features_mask"]:
                placeholders = tokenizer.audio_token * _num_heard(mask)
                sounds.append(f"{tokenizer.boa_token}{placeholders}{tokenizer.eoa_token}")
        text = tokenizer.apply_chat_template(
            conversation.turns, add_generation_prompt=True, tokenize=False
        )
        text = _filled(text, getattr(tokenizer, "image_token", None), images)
        text = _filled(text, getattr(tokenizer, "audio_token", None), sounds)
        return Perceived(tokenizer.encode(text, add_special_tokens=False), pixels, waves)

    @torch.inference_mode()
    def encode(self, perceived: Perceived) -> tuple[Tensor, Tensor]:
        """Return where the soft tokens stand, [n], and what they are, [n, hidden].

        Raises:
            ValueError: the encoders made another number of them than there are placeholders.
        """
        ids = torch.tensor(perceived.tokens)
        positions, rows = [], []
        if perceived.pixels is not None and self._eyes is not None:
            rows.append(self._eyes.see(perceived.pixels))
            positions.append((ids == self._image_id).nonzero()[:, 0])
        if perceived.waves is not None and self._ears is not None:
            rows.append(self._ears.hear(perceived.waves))
            positions.append((ids == self._audio_id).nonzero()[:, 0])
        for places, made in zip(positions, rows, strict=True):
            if len(places) != len(made):
                raise ValueError(f"{len(made)} soft tokens for {len(places)} placeholders")
        return torch.cat(positions), torch.cat(rows)

    def _need(self, sense: "_Sense | None", what: str) -> None:
        if sense is None:
            raise RequestError(f"messages: this model takes no {what}", param="messages")

    def _loaded(
        self, model_dir: Path, name: str, tower_type: Any, sizes: Any, config: Any
    ) -> "_Sense":
        from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder

        parts = torch.nn.ModuleDict(
            {
                f"{name}_tower": tower_type(sizes),
                f"embed_{name}": Gemma4MultimodalEmbedder(sizes, config.text_config),
            }
        )
        weights = _tensors(model_dir, tuple(f"model.{part}." for part in parts))
        try:
            parts.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{model_dir}: its {name} encoder doesn't fit: {reason}") from error
        dtype = weights[f"embed_{name}.embedding_projection.weight"].dtype
        parts.to(self._device, dtype).eval()
        return _Sense(parts[f"{name}_tower"], parts[f"embed_{name}"], dtype, self._device)


@dataclass(frozen=True)
class _Sense:
    """A tower, and what brings its output to the decoder's width."""

    tower: Any
    embed: Any
    dtype: torch.dtype
    device: torch.device | str

    def see(self, pixels: dict[str, Tensor]) -> Tensor:
        """Return the soft tokens [n, hidden] of all pictures, one after the other."""
        values = pixels["pixel_values"].to(self.device, self.dtype)
        where = pixels["image_position_ids"].to(self.device)
        seen = self.tower(pixel_values=values, pixel_position_ids=where).last_hidden_state
        rows: Tensor = self.embed(inputs_embeds=seen)
        return rows.view(-1, rows.shape[-1])

    def hear(self, waves: dict[str, Tensor]) -> Tensor:
        """Return the soft tokens [n, hidden] of all sounds, without their padding."""
        features = waves["input_features"].to(self.device, self.dtype)
        heard = self.tower(features, waves["input_features_mask"].to(self.device))
        rows: Tensor = self.embed(inputs_embeds=heard.last_hidden_state)
        return rows[heard.attention_mask.to(rows.device)]


def open_senses(model_dir: Path, tokenizer: Any, device: torch.device | str) -> Senses | None:
    """Load a checkpoint's encoders, if it has any.

    Raises:
        ValueError: as `Senses`.
    """
    config = json.loads((model_dir / "config.json").read_text())
    towers = any(config.get(f"{name}_config") for name in ("vision", "audio"))
    if config.get("model_type") != _FAMILY or not towers or not list(_shards(model_dir)):
        return None
    return Senses(model_dir, tokenizer, device)


def _check_packages() -> None:
    for package, wheel in (("PIL", "pillow"), ("soundfile", "soundfile")):
        try:
            __import__(package)
        except (ImportError, OSError) as error:
            raise ValueError(
                f"this model sees and hears, which needs {wheel}: pip install {wheel} ({error})"
            ) from error


def _num_heard(mask: Tensor) -> int:
    """Return how many soft tokens a spectrogram becomes: two convolutions of stride 2 shorten it.

    As transformers' `Gemma4Processor.replace_audio_token` has it.
    """
    for _ in range(2):
        mask = mask[::2][: (len(mask) + 2 - 3) // 2 + 1]
    return int(mask.sum())


def _filled(text: str, placeholder: str | None, fillings: list[str]) -> str:
    """Return a prompt with each placeholder of a picture or sound replaced by its soft tokens'."""
    pieces = text.split(placeholder) if placeholder else [text]
    if len(pieces) - 1 != len(fillings):
        raise RequestError(
            f"messages: {placeholder} stands {len(pieces) - 1} times in the prompt, for "
            f"{len(fillings)} of its kind: write it in no text",
            param="messages",
        )
    return "".join(a + b for a, b in zip(pieces, [*fillings, ""], strict=True))


def _shards(model_dir: Path) -> Iterator[Path]:
    yield from sorted(model_dir.glob("*.safetensors"))


def _tensors(model_dir: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without what stands before the tower's name."""
    found = {}
    for path in _shards(model_dir):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if name.startswith(prefixes):
                    found[name.removeprefix("model.")] = file.get_tensor(name)
    return found
