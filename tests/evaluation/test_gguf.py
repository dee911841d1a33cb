"""GGUF files come out as the model that went in, or are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.models import fetch_model


def tiny_gemma3(head_dim: int = 256) -> Gemma3ForCausalLM:
    """One global layer and five sliding ones, with norms that do something."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=1, head_dim=head_dim, sliding_window=16,
        max_position_embeddings=512, initializer_range=0.08, query_pre_attn_scalar=head_dim,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).to(torch.bfloat16)
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            tensor.copy_(torch.empty_like(tensor).uniform_(-0.2, 0.3))
    return model


def write_gguf(
    path: Path, model: Gemma3ForCausalLM, architecture: str = "gemma3", rope_factor: float = 1.0
) -> None:
    config = model.config
    writer = GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_factor(rope_factor)
    words = ["<pad>", "<eos>", "<bos>", "<unk>"]
    words += [f"▁{chr(97 + i % 26)}{i}" for i in range(config.vocab_size - 4)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(i) for i in range(len(words))])
    writer.add_token_types([3, 3, 3, 2] + [1] * (len(words) - 4))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    names = get_tensor_name_map(MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            offset = 1.0 if "norm" in name else 0.0  # llama.cpp stores Gemma's norms as factors
            stored = np.ascontiguousarray(tensor.float().numpy() + offset)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gemma3_comes_out_as_it_went_in(home: Path, tmp_path: Path) -> None:
    model = tiny_gemma3()
    write_gguf(tmp_path / "tiny.gguf", model)
    folder = fetch_model(f"path:{tmp_path}/tiny.gguf")
    assert (folder / "tokenizer.json").exists()
    converted = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        theirs, ours = model.float()(tokens).logits, converted(tokens).logits
    # Norms are rounded to bfloat16 once as factors and once as offsets from one.
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0)
    assert converted.config.layer_types == model.config.layer_types


@pytest.mark.parametrize(
    ("architecture", "head_dim", "rope_factor", "message"),
    [
        ("gemma4", 256, 1.0, "GGUF of architecture 'gemma4': only llama and gemma3 are read"),
        ("qwen3", 256, 1.0, "GGUF of architecture 'qwen3': only llama and gemma3 are read"),
        ("gemma3", 256, 8.0, "scaled rotary frequencies: transformers would leave the scaling out"),
        ("gemma3", 128, 1.0, "gemma3 with heads of 128: transformers would scale scores for 256"),
    ],
)
def test_what_would_be_lost_is_refused(
    architecture: str, head_dim: int, rope_factor: float, message: str, home: Path, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_gemma3(head_dim), architecture, rope_factor)
    with pytest.raises(SlipstreamError, match=message) as caught:
        fetch_model(f"path:{tmp_path}/tiny.gguf")
    assert "\n" not in str(caught.value)
