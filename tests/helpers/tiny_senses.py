"""A tiny random Gemma 4 that sees and hears, as a checkpoint folder; and things to see and hear."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

SAMPLING_RATE = 16_000
_SPECIAL = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
_TURNS = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|video|>"]
_TEMPLATE = """{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'text' %}{{ part.text }}{% else %}<|{{ part.type }}|>{% endif %}
{%- endfor %}{% endif %}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""


def make_checkpoint(folder: Path) -> Path:
    """Write config, weights, tokenizer and processor of a Gemma 4 with both towers."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
    layers = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    text = Gemma4TextConfig(
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        layer_types=layers,
        num_kv_shared_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=16,
        sliding_window=32,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=64,
    )
    audio = Gemma4AudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        subsampling_conv_channels=[128, 4],
        output_proj_dims=32,
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        audio_token_id=ids["audio_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    model = Gemma4ForConditionalGeneration(config).eval()
    with torch.no_grad():  # as drawn, everything looks alike
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(0.0, 0.2 if "tower" in name or "embed_" in name else 0.1)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    images = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    sounds = Gemma4AudioFeatureExtractor()
    parts = {
        "image_processor": json.loads(images.to_json_string()),
        "feature_extractor": json.loads(sounds.to_json_string()),
    }
    (folder / "processor_config.json").write_text(json.dumps(parts))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens that stand for turns, images and sounds."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*_TURNS, *_SPECIAL.values(), *letters]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=_TURNS[3:],
        extra_special_tokens=_SPECIAL,
    )


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Return colourful noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(seed: int = 0, seconds: float = 1.0) -> np.ndarray:
    """Return noise, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, int(seconds * SAMPLING_RATE)).astype(np.float32)


def png_url(image: Image.Image) -> str:
    """Return a picture as a data: URL."""
    written = io.BytesIO()
    image.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def wav(samples: np.ndarray, rate: int = SAMPLING_RATE) -> str:
    """Return a sound as a WAV file in base64."""
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format="WAV", subtype="FLOAT")
    return base64.b64encode(written.getvalue()).decode()
