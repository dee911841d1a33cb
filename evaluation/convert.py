"""Makes a checkpoint folder, from a GGUF or from nothing. Run as a process of its own.

python -m slipstream.evaluation.convert gguf FILE.gguf DIR
python -m slipstream.evaluation.convert random tiny-llama DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging

from .gguf_check import check_gguf


def convert_gguf(source: Path, into: Path) -> None:
    """Dequantise a GGUF once, to bfloat16 safetensors, with its tokenizer.

    A fresh model is built from the configuration without its quantisation entry: saving the loaded
    one would write weights that claim to be a GGUF still.

    Raises:
        ValueError: a file that transformers would not read whole.
    """
    check_gguf(source)
    folder, name = source.parent, source.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(into)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(into)


def make_random(name: str, into: Path) -> None:
    """Make a checkpoint with random weights from a fixed seed."""
    if name in _GEMMA4:
        # Only the sizes and a seed: gigabytes of weights are made where they run.
        Gemma4TextConfig(**_GEMMA4[name]).save_pretrained(into)
        (into / "random.json").write_text(json.dumps({"seed": 0}))
        return
    torch.manual_seed(0)
    model = _tiny(name)
    model.to(torch.bfloat16).save_pretrained(into)


def _tiny(name: str) -> PreTrainedModel:
    """Return a model of a few layers that has every feature of its family."""
    sizes = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "initializer_range": 0.08,  # 0.02 leaves logits so flat that any rounding flips them
    }
    if name == "tiny-llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, tie_word_embeddings=True))
    if name in ("tiny-gemma4", "tiny-gemma4-wide"):
        return _tiny_gemma4(sizes, wide=name.endswith("wide"))
    config = Gemma3TextConfig(
        **sizes,
        num_hidden_layers=4,
        sliding_window=16,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        query_pre_attn_scalar=32,
    )
    return Gemma3ForCausalLM(config)


def _tiny_gemma4(sizes: dict[str, Any], *, wide: bool) -> PreTrainedModel:
    """Return a tiny E4B; if `wide`, a tiny E2B: one key/value head, double-wide shared layers."""
    config = Gemma4TextConfig(
        **{**sizes, "num_key_value_heads": 1 if wide else 2},
        num_hidden_layers=7,
        global_head_dim=64,
        sliding_window=16,
        # Shared global layers read layer 2's keys and values, sliding ones layer 3's.
        layer_types=_layer_types(4, 3) + _layer_types(3, 3),
        num_kv_shared_layers=3,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=512,
        final_logit_softcapping=6.0,  # low enough to bend logits of this size
        use_double_wide_mlp=wide,
    )
    model = Gemma4ForCausalLM(config)
    # Norms and layer scalars start at one, where leaving one out would go unnoticed. Scores aren't
    # scaled: a trained key norm has 1/√head_dim in its weight.
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name or name.endswith("layer_scalar"):
                scale = tensor.shape[0] ** -0.5 if "k_norm" in name else 1.0
                tensor.copy_(torch.empty_like(tensor).uniform_(0.6 * scale, 1.2 * scale))
    return model


def _layer_types(num_layers: int, every: int) -> list[str]:
    """Return sliding layers with a global one at each `every`-th place."""
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(num_layers)]


# Sizes of the text decoders of google/gemma-4-E4B and -E2B. E4B: the challenge's description of
# it. E2B: the configuration in google/gemma.cpp (pull request 919) and vLLM's shapes for it.
_BOTH_GEMMA4: dict[str, Any] = {
    "vocab_size": 262_144,
    "vocab_size_per_layer_input": 262_144,
    "num_attention_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 131_072,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1_000_000.0,
            "partial_rotary_factor": 0.25,  # of a global head's pairs, the first quarter turns
        },
    },
}
_GEMMA4: dict[str, dict[str, Any]] = {
    "gemma-4-E4B": {
        **_BOTH_GEMMA4,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 42,
        "num_key_value_heads": 2,
        "layer_types": _layer_types(42, 6),
        "num_kv_shared_layers": 18,
    },
    "gemma-4-E2B": {
        **_BOTH_GEMMA4,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "layer_types": _layer_types(35, 5),
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
    },
}


def main(arguments: list[str]) -> int:
    """Convert; the last line on standard error says why when it fails."""
    kind, source, into = arguments
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if kind == "gguf":
            convert_gguf(Path(source), Path(into))
        else:
            make_random(source, Path(into))
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        print(f"{type(error).__name__}: {line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
