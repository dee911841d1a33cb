"""What computes less than the model: that it computes just that, and says what it can't."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slipstream.agents.moves import KnowingBriefing, single_moves
from slipstream.evaluation.challenge import Tier, load_challenge
from slipstream.kernels.census import bytes_per_token, read_shape
from slipstream.kernels.engine.engine import Engine, load
from slipstream.kernels.fit import refusal
from slipstream.kernels.levers import CATALOGUE, SEED_SETTINGS, Machine, Risk

TOKENS = torch.randint(512, (60,), generator=torch.Generator().manual_seed(1)).tolist()
HERE = Machine("cpu", 2, has_compiler=True)
LOSSY = {name for name, lever in CATALOGUE.items() if lever.risk is Risk.LOSSY}
STEPS = [{"dtype": "float32"}, {"step": "native"}]


def engine_with(model_dir: Path, tmp_path: Path, levers: dict[str, str]) -> Engine:
    (tmp_path / "levers.json").write_text(json.dumps({"threads": "1", **levers}))
    return load(tmp_path, model_dir, 256)


def logits_of(engine: Engine, tokens: list[int], prefill: int = 20) -> Tensor:
    rows = [engine.begin(tokens[:prefill]), *(engine.reveal(token) for token in tokens[prefill:])]
    return torch.stack(rows)


def reference(model_dir: Path, *, layers: list[int] | None = None) -> Tensor:
    """Logits [41, vocab] of transformers in float32, of some of the layers."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if layers is not None:
        model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in layers)
        model.config.num_hidden_layers = len(layers)
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([TOKENS]), use_cache=False).logits[0]
    return logits[19:]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_fewer_words_have_the_same_logits(
    step: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    """The others' lie far below, and are never chosen."""
    every = logits_of(engine_with(tiny_llama, tmp_path, step), TOKENS)
    engine = engine_with(tiny_llama, tmp_path, {**step, "vocab": "quarter"})
    some = logits_of(engine, TOKENS)
    assert some.shape == every.shape
    torch.testing.assert_close(some[:, :128], every[:, :128])
    assert (some[:, 128:] < some[:, :128].amin(-1, keepdim=True)).all()
    assert max(engine.generate(TOKENS[:20], 60)) < 128


@pytest.mark.parametrize("tiny", ["tiny_llama", "tiny_gemma3"])
def test_skipped_layers_are_those_in_the_back(
    tiny: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As if the model had never had them."""
    model_dir: Path = request.getfixturevalue(tiny)
    count = json.loads((model_dir / "config.json").read_text())["num_hidden_layers"]
    expected = reference(model_dir, layers=[i for i in range(count) if i != count - 2])
    exact = logits_of(engine_with(model_dir, tmp_path, {"dtype": "float32", "skip": "1"}), TOKENS)
    if tiny == "tiny_llama":  # transformers' masks go by position, so by what is left
        torch.testing.assert_close(exact, expected, atol=1e-4, rtol=0)
    native = logits_of(engine_with(model_dir, tmp_path, {"step": "native", "skip": "1"}), TOKENS)
    assert (native - exact).abs().mean() < 0.05 < (exact - reference(model_dir)).abs().mean()


def test_layers_whose_keys_others_read_stay(tiny_gemma4: Path, tmp_path: Path) -> None:
    engine = engine_with(tiny_gemma4, tmp_path, {"dtype": "float32", "skip": "2"})
    sources = {source for source in engine.model.config.kv_sources if source is not None}
    assert sources <= set(engine.model.kept)
    assert len(engine.model.kept) == engine.model.config.num_layers - 2
    assert logits_of(engine, TOKENS).isfinite().all()
    with pytest.raises(ValueError, match=r"skip=8: only \d layers can be left out"):
        engine_with(tiny_gemma4, tmp_path, {"skip": "8"})
    shape = read_shape(tiny_gemma4)
    assert refusal(shape, {"skip": "8"}, HERE) is not None
    assert refusal(shape, {"skip": "2"}, HERE) is None


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_shorter_window_sees_the_latest_positions(
    step: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    """Within it nothing changes; beyond it, what lies before makes no difference in one layer."""
    tokens = [token for _ in range(4) for token in TOKENS]
    full = logits_of(engine_with(tiny_llama, tmp_path, step), tokens[:200], 100)
    short = logits_of(
        engine_with(tiny_llama, tmp_path, {**step, "window": "128"}), tokens[:200], 100
    )
    torch.testing.assert_close(short[:28], full[:28])
    assert (short[60:] - full[60:]).abs().max() > 0.01


def test_bytes_are_counted(tiny_gemma4: Path, smollm2: Path) -> None:
    for model_dir in (tiny_gemma4, smollm2):
        shape = read_shape(model_dir)
        whole = bytes_per_token(shape, SEED_SETTINGS, context=1000)
        half = bytes_per_token(shape, {**SEED_SETTINGS, "vocab": "half"}, context=1000)
        assert half["head"] == pytest.approx(whole["head"] / 2)
        fewer = bytes_per_token(shape, {**SEED_SETTINGS, "skip": "2"}, context=1000)
        assert fewer["down"] < whole["down"]
    layers = shape.num_layers
    assert fewer["down"] == pytest.approx(whole["down"] * (layers - 2) / layers)
    short = bytes_per_token(shape, {"cache": "static", "window": "128"}, context=1000)
    static = bytes_per_token(shape, {"cache": "static"}, context=1000)
    assert short["kv-cache"] == pytest.approx(0.128 * static["kv-cache"])


@pytest.mark.parametrize("tier", list(Tier))
def test_only_the_challenge_tier_s_planner_tries_them(tier: Tier, smollm2: Path) -> None:
    rules = load_challenge("smollm2-cpu").model_copy(update={"tier": tier})
    briefing = KnowingBriefing(
        challenge=rules.name,
        shape=read_shape(smollm2),
        machine=HERE,
        bandwidth_gbps=30.0,
        champion="seed",
        champion_settings=dict(SEED_SETTINGS),
        champion_tps=20.0,
        trials=(),
        planned=(),
        seed=1,
        rules=rules,
    )
    pulled = {name for move in single_moves(briefing, set()) for name in move.changed}
    assert (pulled >= LOSSY) == (tier is Tier.CHALLENGE)
    assert tier is Tier.CHALLENGE or not pulled & LOSSY
    quality = rules.quality.model_copy(update={"enabled": False})
    unjudged = replace(briefing, rules=rules.model_copy(update={"quality": quality}))
    pulled = {name for move in single_moves(unjudged, set()) for name in move.changed}
    assert pulled
    assert not pulled & LOSSY
