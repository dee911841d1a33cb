"""The fused step on a real GPU; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, LlamaConfig, LlamaForCausalLM

from slipstream.kernels.engine.engine import Engine, load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
TOKENS = torch.randint(512, (90,), generator=torch.Generator().manual_seed(1)).tolist()
SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 2048,  # eight of them are more than a kernel keeps beside its weights
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}


KEPT = [{}, {"kv": "int8"}, {"cache": "paged"}, {"cache": "paged", "kv": "int8"}]


def random_gemma4(**sizes: int) -> Gemma4ForCausalLM:
    config = {
        **SIZES,
        "num_hidden_layers": 6,
        "global_head_dim": 128,
        "sliding_window": 16,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 128,
        "vocab_size_per_layer_input": 512,
        "final_logit_softcapping": 30.0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        **sizes,
    }
    return Gemma4ForCausalLM(Gemma4TextConfig(**config))


@pytest.fixture(scope="module", params=["llama", "gemma4", "gemma4-one-kv-head"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose heads the GPU's kernels know."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3))
    else:
        heads = {"num_attention_heads": 8, "num_key_value_heads": 1}  # as E2B has them
        model = random_gemma4(**heads) if "one" in request.param else random_gemma4()
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def engine_with(model_dir: Path, tmp_path: Path, **levers: str) -> Engine:
    (tmp_path / "levers.json").write_text(json.dumps(levers))
    return load(tmp_path, model_dir, 256)


def logits_in(engine: Engine, pieces: list[list[int]]) -> Tensor:
    engine.model.reset()
    with torch.inference_mode():
        rows = [engine.model(piece, last_only=False) for piece in pieces]
    return torch.cat(rows).float().cpu()


@pytest.mark.parametrize("step", ["native", "graph"])
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_logits_are_nearer_to_fp32_than_eager_ones(
    kept: dict[str, str], step: str, model_dir: Path, tmp_path: Path
) -> None:
    """After a prompt, token by token, past the window and past a page."""
    held = {"kv": kept.get("kv", "dense")}
    ones = [[token] for token in TOKENS[20:]]
    pieces = [TOKENS[:20], *ones]
    exact = logits_in(engine_with(model_dir, tmp_path, dtype="float32", **held), pieces)
    eager = logits_in(engine_with(model_dir, tmp_path, **held), pieces)
    fused = logits_in(engine_with(model_dir, tmp_path, step=step, **kept), pieces)
    assert (fused - exact).abs().mean() < 1.1 * (eager - exact).abs().mean()


@pytest.mark.parametrize("weights", ["dense", "int8", "int4-g32", "int4-g128"])
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_a_token_among_others_is_bit_for_bit_the_token_alone(
    kept: dict[str, str], weights: str, model_dir: Path, tmp_path: Path
) -> None:
    levers = {"step": "graph", "weights": weights, "head": weights}
    engine = engine_with(model_dir, tmp_path, **levers, **kept)
    alone = logits_in(engine, [TOKENS[:20], *[[token] for token in TOKENS[20:]]])
    for size in (2, 5, 8):
        pieces = [TOKENS[at : at + size] for at in range(20, 90, size)]
        assert torch.equal(logits_in(engine, [TOKENS[:20], *pieces]), alone)


@pytest.mark.parametrize("kept", [{}, {"cache": "paged", "kv": "int8"}], ids=str)
@pytest.mark.parametrize("window", [512, 700, 1024])
def test_attention_goes_round_its_splits(window: int, kept: dict[str, str], tmp_path: Path) -> None:
    """Where a split's positions begin anew, after 512 and 1,024; with and without a window."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    model = random_gemma4(sliding_window=window, max_position_embeddings=2304)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokens = torch.randint(512, (2056,)).tolist()
    edges = [range(at - 8, at + 8) for at in (512, 712, 1024, 2048)]

    def rows(size: int, **levers: str) -> Tensor:
        """Logits around the edges, read so many tokens at a time."""
        (tmp_path / "levers.json").write_text(json.dumps(levers))
        engine = load(tmp_path, folder, 2304)
        found, at = [], 0
        with torch.inference_mode():
            for edge in edges:
                engine.model(tokens[at : edge.start])
                for start in range(edge.start, edge.stop, size):
                    found.append(engine.model(tokens[start : start + size], last_only=False))
                at = edge.stop
        return torch.cat(found).float().cpu()

    held = {"kv": kept.get("kv", "dense")}
    exact, eager = rows(1, dtype="float32", **held), rows(1, **held)
    alone = rows(1, step="graph", **kept)
    assert (alone - exact).abs().mean() < 1.1 * (eager - exact).abs().mean()
    assert torch.equal(rows(8, step="graph", **kept), alone)


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_drafting_is_lossless(kept: dict[str, str], model_dir: Path, tmp_path: Path) -> None:
    plain = engine_with(model_dir, tmp_path, step="graph", **kept)
    drafted = engine_with(model_dir, tmp_path, step="graph", draft="lookup-adaptive", **kept)
    for prompt in ([7, 8, 9] * 10, TOKENS):
        assert drafted.generate(prompt, 120) == plain.generate(prompt, 120)


@pytest.mark.parametrize("step", ["native", "graph"])
@pytest.mark.parametrize("length", [4, 20])
def test_tokens_fed_back_on_the_device_are_those_fed_back_by_the_host(
    length: int, step: str, model_dir: Path, tmp_path: Path
) -> None:
    """Step after step without the host in between, which is where kernels of two steps meet."""
    engine = engine_with(model_dir, tmp_path, step=step)
    tokens = engine.generate(TOKENS[:length], 100)
    logits = engine.begin(TOKENS[:length])
    assert engine.model.normed.shape == (1, 128)
    for token in tokens:
        assert int(logits.argmax()) == token
        logits = engine.reveal(token)


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_prompts_that_are_filled_up_are_read_as_they_are(
    kept: dict[str, str], model_dir: Path, tmp_path: Path
) -> None:
    """In one graph or launch by launch; also after a longer one, whose end then fills them up."""
    from slipstream.kernels.engine.gpu.model import GpuModel

    graph, native = (
        engine_with(model_dir, tmp_path, step=step, **kept) for step in ("graph", "native")
    )
    assert isinstance(graph.model, GpuModel)
    assert bool(graph.model._prompts) == ("cache" not in kept)
    found: dict[int, Tensor] = {}
    for count in (9, 40, 16, 17, 64, 3, 39, 9, 40):
        seen, exact = (engine.begin(TOKENS[:count]) for engine in (graph, native))
        assert graph.model.length == count
        torch.testing.assert_close(seen, exact, atol=0.06, rtol=0.05)
        torch.testing.assert_close(graph.reveal(5), native.reveal(5), atol=0.06, rtol=0.05)
        assert torch.equal(found.setdefault(count, seen), seen)  # whatever fills it up


@pytest.mark.parametrize("max_context", [7, 50, 90])
def test_a_full_cache_is_an_error_however_prompts_are_read(
    max_context: int, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "levers.json").write_text('{"step": "graph"}')
    engine = load(tmp_path, model_dir, max_context)
    assert len(engine.generate(TOKENS[: max_context - 1], 1)) == 1
    with pytest.raises(ValueError, match="exceed"):
        engine.generate(TOKENS[:max_context], 1)
    with pytest.raises(ValueError, match="context"):
        engine.begin([*TOKENS, *TOKENS][: max_context + 1])
    engine.begin(TOKENS[:max_context])
    with pytest.raises(ValueError, match="context"):
        engine.reveal(1)


def test_soft_tokens_are_read_as_eager_layers_read_them(model_dir: Path, tmp_path: Path) -> None:
    """Few tokens, too, which else go through the kernels that embed by themselves."""
    soft = (torch.tensor([1, 2]), torch.randn(2, 128).bfloat16())
    eager, fused = (engine_with(model_dir, tmp_path, step=step) for step in ("eager", "graph"))
    for count in (4, 40):
        seen = fused.begin(TOKENS[:count], soft)
        exact = eager.begin(TOKENS[:count], soft)
        torch.testing.assert_close(seen, exact, atol=0.06, rtol=0.05)
        assert (fused.begin(TOKENS[:count]) - seen).abs().max() > 0.2


@pytest.mark.parametrize("scheme", ["dense", "int8", "int4-g32", "int4-g64-sym", "int4-g128"])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_matrices_multiply_as_their_dense_twins(scheme: str, m: int) -> None:
    from slipstream.kernels.engine.gpu.launches import Multiplier, unpack
    from slipstream.kernels.engine.gpu.packed import PackedLinear

    device = torch.device("cuda")
    make = Multiplier(device, 1e-6, dependent=torch.cuda.get_device_capability() >= (9, 0))
    for rows, columns in ((64, 256), (75, 256), (2560, 2048)):
        torch.manual_seed(rows)
        packed = PackedLinear(torch.randn(rows, columns, device=device).bfloat16(), scheme)
        dense = packed.dense().double()
        assert (unpack(packed) - dense).norm() < 3e-3 * dense.norm()
        x = torch.randn(m, columns, device=device).bfloat16()
        y = torch.full((m, rows), float("nan"), device=device)
        make.store("matrix", packed, m, x, y).run()
        assert (y - x.double() @ dense.T).norm() < 3e-3 * (x.double() @ dense.T).norm()


@pytest.mark.parametrize("scheme", ["int8", "int4-g64"])
@pytest.mark.parametrize(("m", "columns"), [(1, 512), (7, 512), (3, 8192)])
def test_inputs_in_fixed_point_lose_little(m: int, columns: int, scheme: str) -> None:
    """Beside one outlier a stage, where a common exponent costs most; and none is worth nothing."""
    from slipstream.kernels.engine.gpu.launches import Multiplier
    from slipstream.kernels.engine.gpu.packed import PackedLinear

    device = torch.device("cuda")
    make = Multiplier(device, 1e-6, dependent=torch.cuda.get_device_capability() >= (9, 0))
    torch.manual_seed(m)
    packed = PackedLinear(torch.randn(48, columns, device=device), scheme)
    x = torch.randn(m, columns, device=device)
    x[:, ::128] *= 100
    x[:, 256:384] = 0
    x = x.bfloat16()
    y = torch.empty(m, 48, device=device)
    make.store("matrix", packed, m, x, y).run()
    exact = x.double() @ packed.dense().double().T
    # Steps of 2^-13 of the largest of 64 or 128 at most, whose rounding deviates by 0.29 of them.
    step = x.float().abs().amax() * 2**-13
    assert (y - exact).abs().max() < 6 * 0.29 * step * columns**0.5
    x[0, 5] = float("nan")
    make.store("matrix", packed, m, x, y).run()
    assert y[0].isnan().all()
    assert y[1:].isfinite().all()


@pytest.mark.parametrize("m", [1, 3, 8])
def test_long_tiles_are_added_up_in_halves(m: int) -> None:
    """By the norm that reads them; short ones lie in the first half alone."""
    from slipstream.kernels.engine.gpu.launches import MOST, Multiplier
    from slipstream.kernels.engine.gpu.packed import PackedLinear

    device = torch.device("cuda")
    make = Multiplier(device, 1e-6, dependent=torch.cuda.get_device_capability() >= (9, 0))
    torch.manual_seed(m)
    for columns, halved in ((10240, True), (2048, False), (8224, False)):  # 257 stages
        w = PackedLinear(torch.randn(256, columns, device=device).bfloat16(), "dense")
        x = torch.randn(m, columns, device=device).bfloat16()
        assert make.halved(w) == halved
        delta = torch.zeros(2, MOST, 256, device=device)
        make.add("matrix", w, m, x, delta).run()
        product = (x.double() @ w.dense().double().T).float()
        assert bool(delta[1, :m].any()) == halved
        torch.testing.assert_close(delta.sum(0)[:m], product, rtol=1e-3, atol=0.2)
        residual = torch.randn(m, 256, device=device)
        out = torch.empty(m, 256, dtype=torch.bfloat16, device=device)
        make.norm(make.norm_of(residual, out, delta=delta, halved=halved), m).run()
        torch.testing.assert_close(out.float(), residual + product, rtol=0.01, atol=0.2)
