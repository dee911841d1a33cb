"""The compiled step computes what the reference computes, on every path and in any company."""

import ctypes
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slipstream.kernels.engine.checkpoint import Checkpoint
from slipstream.kernels.engine.config import read_config
from slipstream.kernels.engine.engine import Engine, load
from slipstream.kernels.engine.levers import Levers
from slipstream.kernels.engine.native import NativeModel, native_functions
from slipstream.kernels.engine.packing import pack

FORMATS = [
    ("dense", "bfloat16"),
    ("int8", "bfloat16"),
    ("int8", "int8"),
    ("int4-g32", "bfloat16"),
    ("int4-g32", "int8"),
    ("int4-g64", "int8"),
]
TOKENS = torch.randint(512, (60,), generator=torch.Generator().manual_seed(6)).tolist()


def native(
    model_dir: Path, weights: str, activations: str, *, portable: bool = False
) -> NativeModel:
    levers = Levers(step="native", weights=weights, head=weights, activations=activations)
    config = read_config(model_dir)
    checkpoint = Checkpoint(model_dir, torch.bfloat16)
    return NativeModel(checkpoint, config, levers, 256, portable=portable)


def engine_with(model_dir: Path, tmp_path: Path, **levers: str) -> Engine:
    (tmp_path / "levers.json").write_text(json.dumps(levers))
    return load(tmp_path, model_dir, 256)


def reference_logits(model_dir: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def stepwise(model: NativeModel, prefill: int) -> Tensor:
    model.reset()
    rows = [model(TOKENS[:prefill], last_only=False)]
    return torch.cat([*rows, *(model([token]) for token in TOKENS[prefill:])])


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3"])
@pytest.mark.parametrize("portable", [False, True])
def test_logits_are_nearer_to_the_reference_than_eager_ones(
    family: str, portable: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Both in bfloat16; past Gemma's window of 16, in prefill and step by step."""
    model_dir = request.getfixturevalue(family)
    exact = reference_logits(model_dir)
    eager = engine_with(model_dir, tmp_path).model
    with torch.inference_mode():
        eager_error = (eager(TOKENS, last_only=False).float() - exact).abs().mean()
    for prefill in (1, 20, 60):
        ours = stepwise(native(model_dir, "dense", "bfloat16", portable=portable), prefill)
        assert (ours - exact).abs().mean() < eager_error
        assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(("weights", "activations"), FORMATS)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3"])
def test_a_token_among_others_is_bit_for_bit_the_token_alone(
    family: str, weights: str, activations: str, request: pytest.FixtureRequest
) -> None:
    model = native(request.getfixturevalue(family), weights, activations)
    alone = stepwise(model, 1)
    for prefill in (2, 7, 33, 60):
        assert torch.equal(stepwise(model, prefill), alone)


@pytest.mark.parametrize(("weights", "activations"), FORMATS)
def test_both_paths_compute_the_same(weights: str, activations: str, tiny_llama: Path) -> None:
    fast = native(tiny_llama, weights, activations)
    slow = native(tiny_llama, weights, activations, portable=True)
    if not fast.vectorised:
        pytest.skip("this CPU has no AVX-512 with VNNI and bfloat16")
    assert not slow.vectorised
    theirs = stepwise(slow, 9)
    # Sums in another order may round an activation to the next number: far less than all rounding.
    ours = stepwise(fast, 9)
    error = (ours - reference_logits(tiny_llama)).abs()
    assert (ours - theirs).abs().mean() < 0.5 * error.mean()
    assert (ours - theirs).abs().max() < error.max()


@pytest.mark.parametrize(("weights", "activations"), FORMATS)
@pytest.mark.parametrize("portable", [0, 1])
def test_matrices_multiply_as_their_dense_twins(
    weights: str, activations: str, portable: int
) -> None:
    """Rows that fill no tile, and a bias."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(75, 128, generator=generator).bfloat16()
    bias = torch.randn(75, generator=generator)
    x = torch.randn(5, 128, generator=generator).bfloat16().float()
    packed = pack(weight, weights, int8_inputs=activations == "int8", bias=bias)
    y = torch.empty(5, 75)
    native_functions().matrix_multiply(
        ctypes.byref(packed.spec), x.data_ptr(), 5, portable, y.data_ptr()
    )
    exact = x @ weight.float().T + bias
    error = (y - exact).std() / exact.std()
    bounds = {"dense": 1e-6, "int8": 0.01, "int4-g32": 0.09, "int4-g64": 0.1}
    assert error < bounds[weights] + (0.01 if activations == "int8" else 0.0)


def test_int4_keeps_weights_that_lie_on_a_grid() -> None:
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, (64, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15  # both ends occur, as in a Q4_1 file
    weight = (codes.float() / 128 - 0.0625).view(64, 128)
    packed = pack(weight, "int4-g32", int8_inputs=False)
    units, columns = torch.eye(128), torch.empty(128, 64)
    native_functions().matrix_multiply(
        ctypes.byref(packed.spec), units.data_ptr(), 128, 0, columns.data_ptr()
    )
    torch.testing.assert_close(columns.T, weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("weights", "activations"), FORMATS)
def test_drafting_is_lossless_over_ten_thousand_tokens(
    weights: str, activations: str, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = {"step": "native", "weights": weights, "head": weights, "activations": activations}
    plain = engine_with(tiny_llama, tmp_path, **settings)
    drafted = engine_with(tiny_llama, tmp_path, **settings, draft="lookup-adaptive")
    generator = torch.Generator().manual_seed(7)
    for _ in range(12):
        prompt = torch.randint(512, (20,), generator=generator).tolist() * 2
        assert drafted.generate(prompt, 200) == plain.generate(prompt, 200)


def test_decoding_at_once_is_decoding_step_by_step(tiny_llama: Path) -> None:
    model = native(tiny_llama, "int4-g32", "int8")
    (first,) = model.choose(TOKENS)
    at_once = model.decode(first, 50)
    model.reset()
    (token,) = model.choose(TOKENS)
    one_by_one = []
    for _ in range(50):
        (token,) = model.choose([token])
        one_by_one.append(token)
    assert at_once == one_by_one
    model.truncate(80)
    assert model.decode(at_once[19], 30) == at_once[20:]


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "message"),
    [
        ([], 4, "no tokens"),
        ([512], 4, "token 512 is outside 0..511"),
        ([-1], 4, "token -1 is outside"),
        ([1] * 250, 10, "exceed the context of 256"),
    ],
)
def test_wrong_input_is_an_error_not_a_token(
    prompt: list[int], num_tokens: int, message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    engine = engine_with(tiny_llama, tmp_path, step="native")
    with pytest.raises(ValueError, match=message):
        engine.generate(prompt, num_tokens)


def test_a_full_cache_is_an_error(tiny_llama: Path) -> None:
    model = native(tiny_llama, "dense", "bfloat16")
    model([1] * 256)
    for append in (lambda: model([1]), lambda: model.decode(1, 1)):
        with pytest.raises(ValueError, match="257 positions exceed the context of 256"):
            append()


@pytest.mark.parametrize(
    ("levers", "message"),
    [
        ({"dtype": "float32"}, "step=native needs dtype=bfloat16, not float32"),
        ({"weights": "int4-g256"}, "int4 group 256 does not divide the 128 input columns"),
    ],
)
def test_what_it_has_no_code_for_is_refused(
    levers: dict[str, str], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        engine_with(tiny_llama, tmp_path, step="native", **levers)


def test_without_a_compiler_it_says_what_to_install(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slipstream.kernels.engine.compiled import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    build.cache_clear()
    with pytest.raises(ValueError, match=r"step\.cpp: no-such-compiler not found.*apt-get install"):
        engine_with(tiny_llama, tmp_path, step="native")
    monkeypatch.delenv("CXX")
    build.cache_clear()
    assert engine_with(tiny_llama, tmp_path, step="native").generate([1, 2], 3)  # built once more


def test_source_that_does_not_compile_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slipstream.kernels.engine import compiled

    source = tmp_path / "wrong.cpp"
    source.write_text("int f() { return missing; }\n")
    monkeypatch.setitem(compiled.KERNELS, "cpu", ("wrong", source))
    compiled.build.cache_clear()
    with pytest.raises(ValueError, match=r"wrong\.cpp: .*says .*missing"):
        compiled.build("cpu")
