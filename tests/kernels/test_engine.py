"""The engine computes what transformers computes, whatever levers are pulled."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slipstream.kernels.engine.cache import PAGE, CacheSize, GrowingCache, PagedCache, make_caches
from slipstream.kernels.engine.config import read_config
from slipstream.kernels.engine.engine import Engine, load
from slipstream.kernels.engine.levers import Levers

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


def engine_with(model_dir: Path, tmp_path: Path, **levers: str) -> Engine:
    (tmp_path / "levers.json").write_text(json.dumps({"dtype": "float32", **levers}))
    return load(tmp_path, model_dir, 256)


def reference_logits(model_dir: Path, tokens: list[int]) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def engine_logits(engine: Engine, tokens: list[int], prefill: int) -> Tensor:
    """Logits after every token: the first `prefill` at once, the others step by step."""
    with torch.inference_mode():
        engine.model.reset()
        rows = [engine.model(tokens[:prefill], last_only=False)]
        rows += [engine.model([token]) for token in tokens[prefill:]]
    return torch.cat(rows)


@pytest.mark.parametrize("levers", EXACT_LEVERS, ids=str)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3"])
@pytest.mark.parametrize("prefill", [1, 11, 30])
def test_logits_match_transformers(
    family: str,
    levers: dict[str, str],
    prefill: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """In fp32 within 1e-4, in prefill and decode, past Gemma's window of 16."""
    model_dir = request.getfixturevalue(family)
    tokens = torch.randint(512, (48,), generator=torch.Generator().manual_seed(1)).tolist()
    ours = engine_logits(engine_with(model_dir, tmp_path, **levers), tokens, prefill)
    torch.testing.assert_close(ours, reference_logits(model_dir, tokens), atol=1e-4, rtol=0)


def test_smollm2_logits_match_transformers(smollm2: Path, tmp_path: Path) -> None:
    tokens = torch.randint(49152, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    engine = engine_with(smollm2, tmp_path)
    whole = engine_logits(engine, tokens, 40)
    torch.testing.assert_close(whole, reference_logits(smollm2, tokens), atol=1e-4, rtol=0)
    # transformers' own steps differ from its own prefill by about 1e-4 here; so may ours.
    stepped = engine_logits(engine, tokens, 30)
    torch.testing.assert_close(stepped, whole, atol=3e-4, rtol=0)


def test_greedy_tokens_match_transformers_generate(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    prompt = [3, 1, 4, 1, 5]
    theirs = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=60,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 5:].tolist()
    assert engine_with(tiny_llama, tmp_path).generate(prompt, 60) == theirs


def test_compiled_layers_compute_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    tokens = list(range(20, 40))
    ours = engine_logits(engine_with(tiny_llama, tmp_path, compile="layer"), tokens, 15)
    torch.testing.assert_close(ours, reference_logits(tiny_llama, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("draft", ["lookup-2", "lookup-4", "lookup-7", "lookup-adaptive"])
@pytest.mark.parametrize("cache", ["growing", "static", "paged"])
def test_drafting_is_lossless(draft: str, cache: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The same tokens as plain decoding, where guesses come true and where they don't."""
    plain = engine_with(tiny_llama, tmp_path)
    drafted = engine_with(tiny_llama, tmp_path, draft=draft, cache=cache)
    for prompt in ([7, 8, 9] * 10, list(range(50)), [5]):
        assert drafted.generate(prompt, 120) == plain.generate(prompt, 120)


def test_drafting_saves_passes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(tiny_llama, tmp_path, draft="lookup-4")
    passes = 0
    choose = engine.model.choose

    def counting(tokens: list[int], *, last_only: bool = True, soft: object = None) -> list[int]:
        nonlocal passes
        passes += 1
        return choose(tokens, last_only=last_only)

    monkeypatch.setattr(engine.model, "choose", counting)
    engine.generate([7, 8, 9] * 10, 150)
    assert passes < 150  # a random model ends in a loop, which lookup then guesses


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "int4-g64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_and_dense_paths_hold_the_same_weights(scheme: str, dtype: str) -> None:
    """One row goes through the packed kernel, many through the dense copy."""
    from slipstream.kernels.engine.linear import make_linear

    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 128, generator=generator).to(getattr(torch, dtype))
    x = torch.randn(20, 128, generator=generator).to(weight.dtype)
    linear = make_linear(weight, scheme)
    together = linear(x).float()
    apart = torch.cat([linear(row[None]) for row in x]).float()
    tolerance = 0.05 if dtype == "float32" else 0.25
    torch.testing.assert_close(apart, together, atol=tolerance, rtol=0.02)
    exact = x.float() @ weight.float().T
    error = (together - exact).std() / exact.std()
    assert error < {"int8": 0.02, "int4-g32": 0.12, "int4-g64": 0.13}[scheme]


def test_int4_keeps_weights_that_lie_on_a_grid() -> None:
    """Weights already on a 4-bit grid per group of 32 come back, up to the scales' rounding."""
    from slipstream.kernels.engine.linear import Int4Linear

    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, (64, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15  # both ends occur, as in a Q4_1 file
    weight = (0.01 * codes.float() - 0.07).view(64, 128)
    fine, coarse = Int4Linear(weight, 32), Int4Linear(weight * torch.tensor([1.0, 3.0] * 64), 64)
    torch.testing.assert_close(fine.dense, weight, atol=1e-6, rtol=0)
    assert not torch.allclose(coarse.dense, weight * torch.tensor([1.0, 3.0] * 64), atol=1e-3)


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "message"),
    [
        ([], 4, "no tokens"),
        ([512], 4, "token 512 is outside 0..511"),
        ([-1], 4, "token -1 is outside"),
        ([1] * 250, 10, "exceed the context of 256"),
    ],
)
@pytest.mark.parametrize("draft", ["off", "lookup-4"])
def test_wrong_input_is_an_error_not_a_token(
    prompt: list[int], num_tokens: int, message: str, draft: str, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        engine_with(tiny_llama, tmp_path, draft=draft).generate(prompt, num_tokens)


def test_requests_do_not_see_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    engine = engine_with(tiny_llama, tmp_path, cache="static")
    first = engine.generate([1, 2, 3], 20)
    engine.generate(list(range(100)), 20)
    assert engine.generate([1, 2, 3], 20) == first


@torch.inference_mode()
def test_pages_come_as_the_sequence_grows_and_stay(tiny_llama: Path, tmp_path: Path) -> None:
    engine = engine_with(tiny_llama, tmp_path, cache="paged")
    cache = engine.model.caches[0]
    assert isinstance(cache, PagedCache)
    heads, size = engine.model.config.kv_heads[0], engine.model.config.head_dims[0]

    def pages() -> list[int]:
        return [start for start in cache.table.tolist() if start]

    (first,) = pages()  # though 256 positions may come
    assert cache.contents()[0].shape == (heads, 0, size)
    cache.extend(*torch.randn(2, heads, 3, size))
    assert pages() == [first]
    cache.truncate(1)
    cache.extend(*torch.randn(2, heads, PAGE, size))
    assert pages()[0] == first
    assert len(pages()) == 2
    assert cache.contents()[0].shape == (heads, PAGE + 1, size)
    cache.truncate(0)
    assert len(pages()) == 2


@pytest.mark.parametrize("kind", ["growing", "static", "paged"])
def test_int8_keys_and_values_are_within_half_a_step(kind: str, tiny_llama: Path) -> None:
    """Whatever they are held in, and after some were forgotten."""
    config, device = read_config(tiny_llama), torch.device("cpu")
    heads, size = config.kv_heads[0], config.head_dims[0]
    dense = GrowingCache(CacheSize(heads, size, 300, torch.float32, device))
    cache = make_caches(config, Levers(cache=kind, kv="int8"), torch.float32, device, 300)[0]
    torch.manual_seed(0)
    for count, keep in ((100, 90), (1, 91), (80, 171)):
        rows = torch.randn(2, heads, count, size) * torch.rand(2, heads, count, 1)
        exact, held = dense.extend(*rows), cache.extend(*rows)
        dense.truncate(keep)
        cache.truncate(keep)
    for one, other in zip(exact, held, strict=True):
        assert other.shape == one.shape
        error = (one - other).abs() / one.abs().amax(-1, keepdim=True)
        assert 0.001 < error.max() <= 0.5 / 127 + 1e-6


def test_int8_keys_and_values_change_little(tiny_llama: Path, tmp_path: Path) -> None:
    tokens = torch.randint(512, (48,), generator=torch.Generator().manual_seed(1)).tolist()
    dense = engine_logits(engine_with(tiny_llama, tmp_path), tokens, 20)
    ours = engine_logits(engine_with(tiny_llama, tmp_path, kv="int8"), tokens, 20)
    assert 0 < (ours - dense).norm() < 0.02 * dense.norm()


def test_native_steps_have_no_code_for_them(tiny_llama: Path, tmp_path: Path) -> None:
    for levers in ({"kv": "int8"}, {"cache": "paged"}):
        with pytest.raises(ValueError, match="leave kv=dense and cache=static"):
            engine_with(tiny_llama, tmp_path, step="native", dtype="bfloat16", **levers)


def test_both_doors_run_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    engine = engine_with(tiny_llama, tmp_path)
    tokens = engine.generate([9, 8, 7], 12)
    logits = engine.begin([9, 8, 7])
    for token in tokens:
        assert int(logits.argmax()) == token
        logits = engine.reveal(token)


def test_unknown_lever_and_value_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lever 'turbo' is not one of dtype"):
        engine_with(tiny_llama, tmp_path, turbo="on")
    with pytest.raises(ValueError, match="lever cache: 'huge' is not one of growing, static"):
        engine_with(tiny_llama, tmp_path, cache="huge")
