"""Gemma 4: per-layer sizes, shared caches, per-layer embeddings, as transformers computes them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
)

from slipstream.evaluation.models import fetch_model
from slipstream.kernels.engine.checkpoint import Checkpoint
from slipstream.kernels.engine.config import read_config
from slipstream.kernels.engine.engine import Engine, load
from slipstream.kernels.engine.model import Model
from slipstream.kernels.engine.shapes import tensor_shapes

EXACT_LEVERS = [
    {},
    {"cache": "static"},
    {"cache": "paged"},
    {"attention": "grouped"},
    {"fuse": "qkv"},
    {"fuse": "qkv+gate-up"},
    {"norm": "layer-norm"},
    {"threads": "1"},
    {"cache": "static", "attention": "grouped", "fuse": "qkv+gate-up", "norm": "layer-norm"},
]
BOTH = pytest.mark.parametrize("tiny", ["tiny_gemma4", "tiny_gemma4_wide"])
TOKENS = torch.randint(512, (56,), generator=torch.Generator().manual_seed(1)).tolist()


@BOTH
@pytest.mark.parametrize("levers", [{}, {"kv": "int8", "cache": "paged"}], ids=str)
@pytest.mark.parametrize("count", [3, 30, 56])
def test_what_fills_a_prompt_up_changes_nothing(
    count: int, levers: dict[str, str], model_dir: Path, tmp_path: Path
) -> None:
    """Past the window, in layers that read others' keys, and in what is decoded afterwards."""
    model = engine_with(model_dir, tmp_path, **{"cache": "static", **levers}).model
    assert isinstance(model, Model)
    with torch.inference_mode():
        exact = model.hidden(TOKENS[:count], last_only=True)
        after = model([7])
        for filler in (0, 5):
            model.reset()
            ids = torch.tensor([*TOKENS[:count], *[filler] * (64 - count)])
            last = torch.tensor([count - 1])
            seen = model._hidden(ids, None, last, filled_up=True)
            torch.testing.assert_close(seen, exact, atol=1e-4, rtol=0)
            model.truncate(count)
            torch.testing.assert_close(model([7]), after, atol=1e-4, rtol=0)


@BOTH
def test_int8_keys_and_values_of_shared_layers_change_little(
    model_dir: Path, tmp_path: Path
) -> None:
    dense = engine_logits(engine_with(model_dir, tmp_path), TOKENS, 20)
    for kind in ("static", "paged"):
        ours = engine_logits(engine_with(model_dir, tmp_path, kv="int8", cache=kind), TOKENS, 20)
        assert 0 < (ours - dense).norm() < 0.03 * dense.norm()


@pytest.fixture
def model_dir(tiny: str, request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(tiny)
    return found


def engine_with(model_dir: Path, tmp_path: Path, max_context: int = 256, **levers: str) -> Engine:
    (tmp_path / "levers.json").write_text(json.dumps({"dtype": "float32", **levers}))
    return load(tmp_path, model_dir, max_context)


def reference(model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


@cache
def reference_logits(model_dir: Path, length: int = len(TOKENS)) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = reference(model_dir)(torch.tensor([TOKENS[:length]])).logits[0]
    return logits


def engine_logits(engine: Engine, tokens: list[int], prefill: int) -> Tensor:
    """Logits after every token: the first `prefill` at once, the others step by step."""
    with torch.inference_mode():
        engine.model.reset()
        rows = [engine.model(tokens[:prefill], last_only=False)]
        rows += [engine.model([token]) for token in tokens[prefill:]]
    return torch.cat(rows).cpu()


def copy_with(model_dir: Path, into: Path, config: dict[str, Any]) -> Path:
    """A checkpoint with the tensors of `model_dir` and another configuration."""
    into.mkdir()
    (into / "model.safetensors").symlink_to(model_dir / "model.safetensors")
    (into / "config.json").write_text(json.dumps(config))
    return into


def config_of(model_dir: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
    return raw


@pytest.mark.parametrize("levers", EXACT_LEVERS, ids=str)
@pytest.mark.parametrize("prefill", [1, 11, 30])
@BOTH
def test_logits_match_transformers(
    model_dir: Path, prefill: int, levers: dict[str, str], tmp_path: Path
) -> None:
    """In fp32 within 1e-4, in prefill and decode, past the window of 16."""
    ours = engine_logits(engine_with(model_dir, tmp_path, **levers), TOKENS, prefill)
    torch.testing.assert_close(ours, reference_logits(model_dir), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", [11, 40])
@BOTH
def test_layers_without_keys_of_their_own_read_only_the_last_token_of_a_prompt(
    model_dir: Path, prompt: int, tmp_path: Path
) -> None:
    """Past the window, too, and the caches are as if they had read all of it."""
    engine = engine_with(model_dir, tmp_path)
    rows_in: list[int] = []
    last = engine.model.layers[-1]
    whole = last.mlp.__call__
    last.mlp = lambda x: rows_in.append(len(x)) or whole(x)  # type: ignore[assignment]
    with torch.inference_mode():
        first = engine.model(TOKENS[:prompt])
        rest = [engine.model([token]) for token in TOKENS[prompt:]]
    assert rows_in[0] == 1
    expected = reference_logits(model_dir)[prompt - 1 :]
    torch.testing.assert_close(torch.cat((first, *rest)).cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("levers", [{}, {"cache": "static", "attention": "grouped"}], ids=str)
@BOTH
def test_truncated_caches_forget_in_shared_layers_too(
    model_dir: Path, levers: dict[str, str], tmp_path: Path
) -> None:
    engine = engine_with(model_dir, tmp_path, **levers)
    wrong = [(token + 7) % 512 for token in TOKENS]
    with torch.inference_mode():
        engine.model(TOKENS[:20] + wrong[20:])
        engine.model.truncate(20)
        several = engine.model(TOKENS[20:30], last_only=False)
        engine.model([wrong[30]])
        engine.model.truncate(30)
        single = engine.model([TOKENS[30]])
    expected = reference_logits(model_dir, 31)[20:]
    torch.testing.assert_close(torch.cat((several, single)).cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("draft", ["off", "lookup-4"])
@BOTH
def test_greedy_tokens_match_transformers_generate(
    model_dir: Path, draft: str, tmp_path: Path
) -> None:
    model = reference(model_dir)
    prompt = [3, 1, 4, 1, 5]
    theirs = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=60,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 5:].tolist()
    assert engine_with(model_dir, tmp_path, draft=draft).generate(prompt, 60) == theirs


def test_every_feature_is_in_the_tiny_models(tiny_gemma4: Path, tiny_gemma4_wide: Path) -> None:
    config, wide = read_config(tiny_gemma4), read_config(tiny_gemma4_wide)
    assert config.kv_sources == (None, None, None, None, 3, 3, 2)
    assert config.head_dims == (32, 32, 64, 32, 32, 32, 64)
    assert config.windows == (16, 16, None, 16, 16, 16, None)
    assert [rope.num_angles for rope in config.ropes] == [16, 16, 8, 16, 16, 16, 8]
    assert (config.per_layer_size, config.logit_cap, config.attention_scale) == (32, 6.0, 1.0)
    assert config.intermediate_size == 256
    assert wide.intermediate_sizes == (256,) * 4 + (512,) * 3
    assert (config.num_kv_heads, wide.num_kv_heads) == (2, 1)
    with pytest.raises(ValueError, match=r"head_dims differ between layers: \[32, 64\]"):
        _ = config.head_dim


def test_compiled_layers_compute_the_same(tiny_gemma4: Path, tmp_path: Path) -> None:
    ours = engine_logits(engine_with(tiny_gemma4, tmp_path, compile="layer"), TOKENS[:24], 15)
    torch.testing.assert_close(ours, reference_logits(tiny_gemma4, 24), atol=1e-4, rtol=0)


def test_bfloat16_is_as_close_as_transformers(tiny_gemma4: Path, tmp_path: Path) -> None:
    exact = reference_logits(tiny_gemma4)
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma4, dtype=torch.bfloat16)
    with torch.inference_mode():
        theirs = model(torch.tensor([TOKENS])).logits[0].float()
    ours = engine_logits(engine_with(tiny_gemma4, tmp_path, dtype="bfloat16"), TOKENS, 56).float()
    assert (ours - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("weights", "worst"), [("int8", 0.1), ("int4-g32", 1.0)])
@pytest.mark.parametrize("fuse", ["none", "qkv+gate-up"])
@BOTH
def test_quantised_weights_run(
    model_dir: Path, weights: str, worst: float, fuse: str, dtype: str, tmp_path: Path
) -> None:
    levers = {"weights": weights, "head": weights, "fuse": fuse, "dtype": dtype}
    engine = engine_with(model_dir, tmp_path, **levers)
    error = engine_logits(engine, TOKENS, 40).float() - reference_logits(model_dir)
    assert error.abs().mean() < worst


def test_values_that_are_keys(tmp_path: Path) -> None:
    """Global layers without a value matrix and with key/value heads of their own (Gemma 4 31B)."""
    torch.manual_seed(5)
    config = Gemma4TextConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, global_head_dim=64,
        num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2, initializer_range=0.08,
        hidden_size_per_layer_input=0, max_position_embeddings=512,
    )  # fmt: skip
    Gemma4ForCausalLM(config).save_pretrained(tmp_path / "model")
    for levers in EXACT_LEVERS:
        ours = engine_logits(engine_with(tmp_path / "model", tmp_path, **levers), TOKENS, 30)
        expected = reference_logits(tmp_path / "model")
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_older_configurations_name_the_global_head_size(tiny_gemma4: Path, tmp_path: Path) -> None:
    """Before transformers 5.2x sizes of single layers were spelt `global_head_dim`."""
    raw = config_of(tiny_gemma4)
    del raw["per_layer_config"]
    folder = copy_with(tiny_gemma4, tmp_path / "old", {**raw, "global_head_dim": 64})
    assert read_config(folder) == read_config(tiny_gemma4)


def test_multimodal_checkpoints_hold_the_same_decoder(tiny_gemma4: Path, tmp_path: Path) -> None:
    """Saved by transformers as the text part of a `Gemma4ForConditionalGeneration`."""
    text = Gemma4TextConfig.from_pretrained(tiny_gemma4)
    whole = Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    model = Gemma4ForConditionalGeneration(whole)
    plain = Gemma4ForCausalLM.from_pretrained(tiny_gemma4, dtype=torch.float32)
    model.model.language_model.load_state_dict(plain.model.state_dict())
    model.save_pretrained(tmp_path / "whole")
    names = load_file(tmp_path / "whole/model.safetensors")
    assert "model.language_model.layers.0.layer_scalar" in names
    assert read_config(tmp_path / "whole") == read_config(tiny_gemma4)
    ours = engine_logits(engine_with(tmp_path / "whole", tmp_path), TOKENS, 30)
    torch.testing.assert_close(ours, reference_logits(tiny_gemma4), atol=1e-4, rtol=0)


def test_unused_projections_of_shared_layers_are_left_alone(
    tiny_gemma4: Path, tmp_path: Path
) -> None:
    """Google's checkpoints hold key and value matrices for layers that don't use them."""
    tensors = load_file(tiny_gemma4 / "model.safetensors")
    tensors["model.layers.5.self_attn.k_proj.weight"] = torch.full((64, 128), torch.nan)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_gemma4 / "config.json").read_text())
    ours = engine_logits(engine_with(tmp_path, tmp_path), TOKENS, 30)
    torch.testing.assert_close(ours, reference_logits(tiny_gemma4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma-4-E4B", "gemma-4-E2B"])
def test_random_tensors_are_those_of_transformers(name: str, home: Path) -> None:
    folder = fetch_model(f"random:{name}")
    config = Gemma4TextConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = Gemma4ForCausalLM(config)
    theirs = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    del theirs["lm_head.weight"]  # tied
    assert tensor_shapes(read_config(folder)) == theirs


def test_random_tensors_depend_on_name_and_seed_only(tiny_gemma4: Path, tmp_path: Path) -> None:
    def made(seed: int, names: list[str], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        folder = tmp_path / str(seed)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text((tiny_gemma4 / "config.json").read_text())
        (folder / "random.json").write_text(json.dumps({"seed": seed}))
        checkpoint = Checkpoint(folder, dtype)
        return [checkpoint.take(name) for name in names]

    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))
    norm = "model.layers.0.self_attn.q_norm.weight"
    a, b, ones = made(0, [first, second, norm])
    b_again, a_again = made(0, [second, first])
    assert torch.equal(a, a_again)
    assert torch.equal(b, b_again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, made(1, [first])[0])
    assert a.std().item() == pytest.approx(0.02, rel=0.05)
    assert ones.tolist() == [1.0] * 32
    assert made(0, [first], torch.bfloat16)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"checkpoint has no tensor 'lm_head.weight'"):
        made(0, ["lm_head.weight"])


def test_engine_runs_on_random_weights(tiny_gemma4: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_gemma4 / "config.json").read_text())
    with pytest.raises(ValueError, match=r"neither model.safetensors nor random.json"):
        engine_with(tmp_path, tmp_path)
    (tmp_path / "random.json").write_text('{"seed": 0}')
    tokens = engine_with(tmp_path, tmp_path).generate([1, 2, 3], 20)
    assert tokens == engine_with(tmp_path, tmp_path, cache="static").generate([1, 2, 3], 20)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3", "tiny_gemma4"])
def test_every_tensor_is_made_on_the_engine_s_device(
    family: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is made without naming a device would land on `meta` here, and fail."""
    model_dir = request.getfixturevalue(family)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for levers in EXACT_LEVERS:
        expected = engine_with(model_dir, tmp_path, **levers).generate(TOKENS, 4)
        with torch.device("meta"):
            engine = engine_with(model_dir, tmp_path, **levers)
            assert engine.generate(TOKENS, 4) == expected
            assert engine.begin(TOKENS[:9]).device.type == "cpu"
            assert engine.reveal(9).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3", "tiny_gemma4", "tiny_gemma4_wide"])
def test_a_gpu_computes_what_transformers_computes(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model_dir = request.getfixturevalue(family)
    for levers in EXACT_LEVERS:
        engine = engine_with(model_dir, tmp_path, **levers)
        assert engine.model.embedding.is_cuda
        ours = engine_logits(engine, TOKENS, 30)
        torch.testing.assert_close(ours, reference_logits(model_dir), atol=1e-3, rtol=0)
        assert engine.begin(TOKENS).device.type == "cpu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_moe_block": True}, "no code for enable_moe_block=True"),
        ({"attention_bias": True}, "no code for attention_bias=True"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all'"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu'"),
        ({"vocab_size_per_layer_input": 100}, "vocab_size_per_layer_input=100"),
        ({"rope_parameters": None}, "rope_parameters=None"),
        ({"per_layer_config": {"0": {"sliding_window": 4}}}, "sliding_window of single layers"),
        ({"num_kv_shared_layers": 5}, "no layer has keys and values for full_attention to share"),
        ({"layer_types": ["chunked_attention"] * 7}, "'chunked_attention' layers"),
        ({"model_type": "gemma9"}, "'gemma9': this engine decodes llama, gemma3_text, gemma4"),
    ],
)
def test_what_has_no_code_is_refused(
    changes: dict[str, Any], message: str, tiny_gemma4: Path, tmp_path: Path
) -> None:
    folder = copy_with(tiny_gemma4, tmp_path / "changed", {**config_of(tiny_gemma4), **changes})
    with pytest.raises(ValueError, match=message):
        engine_with(folder, tmp_path)


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "message"),
    [
        ([], 4, "no tokens"),
        ([512], 4, "token 512 is outside 0..511"),
        ([-1], 4, "token -1 is outside"),
        ([1] * 70, 1, "exceed the context of 64"),
        ([1] * 60, 5, "exceed the context of 64"),
    ],
)
def test_wrong_input_is_an_error_not_a_token(
    prompt: list[int], num_tokens: int, message: str, tiny_gemma4: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        engine_with(tiny_gemma4, tmp_path, max_context=64).generate(prompt, num_tokens)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_a_full_cache_is_an_error(cache: str, tiny_gemma4: Path, tmp_path: Path) -> None:
    engine = engine_with(tiny_gemma4, tmp_path, max_context=64, cache=cache)
    engine.begin([1] * 63)
    engine.reveal(2)
    with pytest.raises(ValueError, match="65 positions exceed the context of 64"):
        engine.reveal(3)
    assert len(engine.generate([1] * 63, 1)) == 1


def test_soft_tokens_stand_in_for_embeddings(tiny_gemma4: Path, tmp_path: Path) -> None:
    """As transformers merges what its encoders made: not scaled, and with the pad's own inputs."""
    soft = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([1, 2, 5])
    model = reference(tiny_gemma4).model
    ids = torch.tensor([TOKENS[:20]])
    with torch.inference_mode():
        embedded = model.embed_tokens(ids)
        embedded[0, positions] = soft
        padded = ids.clone()
        padded[0, positions] = model.config.pad_token_id or 0
        own = model.get_per_layer_inputs(padded, embedded)
        hidden = model(inputs_embeds=embedded, per_layer_inputs=own).last_hidden_state
        logits = reference(tiny_gemma4).lm_head(hidden)[0, -1]
        cap = model.config.final_logit_softcapping
        expected = torch.tanh(logits / cap) * cap
    engine = engine_with(tiny_gemma4, tmp_path)
    assert engine.takes_soft_tokens
    torch.testing.assert_close(
        engine.begin(TOKENS[:20], (positions, soft)), expected, atol=1e-4, rtol=0
    )
    assert (engine.begin(TOKENS[:20]) - expected).abs().max() > 1e-2
    first = next(engine.stream(TOKENS[:20], 4, 4, (positions, soft)))
    assert first == [int(expected.argmax())]


@pytest.mark.parametrize(
    ("positions", "shape", "told"),
    [
        ([0, 20], (2, 128), "a soft token lies outside the prompt of 20"),
        ([0, 1], (1, 128), "2 soft tokens need embeddings"),
        ([0], (1, 129), "1 soft tokens need embeddings"),
    ],
)
def test_soft_tokens_that_do_not_fit_are_an_error(
    positions: list[int], shape: tuple[int, int], told: str, tiny_gemma4: Path, tmp_path: Path
) -> None:
    engine = engine_with(tiny_gemma4, tmp_path)
    with pytest.raises(ValueError, match=told):
        engine.begin(TOKENS[:20], (torch.tensor(positions), torch.zeros(shape)))
