"""Makes a checkpoint folder, from a GGUF or from nothing. Run as a process of its own.

python -m slipstream.evaluation.convert gguf FILE.gguf DIR
python -m slipstream.evaluation.convert random tiny-llama DIR
"""

import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging


def convert_gguf(source: Path, into: Path) -> None:
    """Dequantise a GGUF once, to bfloat16 safetensors, with its tokenizer.

    A fresh model is built from the configuration without its quantisation entry: saving the loaded
    one would write weights that claim to be a GGUF still.
    """
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
    if name == "gemma-4-E4B":
        _describe_gemma4_e4b(into)
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
    config = Gemma3TextConfig(
        **sizes,
        num_hidden_layers=4,
        sliding_window=16,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        query_pre_attn_scalar=32,
    )
    return Gemma3ForCausalLM(config)


def _describe_gemma4_e4b(into: Path) -> None:
    """Write the sizes of Gemma 4 E4B and a seed; its 16 GB of weights are made where they run."""
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig(
        vocab_size=262_144,
        hidden_size=2560,
        intermediate_size=10_240,
        num_hidden_layers=42,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        global_head_dim=512,
        sliding_window=512,
        num_kv_shared_layers=18,
        hidden_size_per_layer_input=256,
        final_logit_softcapping=30.0,
    )
    config.save_pretrained(into)
    (into / "random.json").write_text(json.dumps({"seed": 0}))


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
