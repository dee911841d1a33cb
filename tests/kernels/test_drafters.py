"""Guesses of a smaller model and of Gemma 4's assistant: what they are, and that they cost nothing.

Greedy tokens with them are those without, over more than ten thousand.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
)

from slipstream.evaluation.models import fetch_model
from slipstream.kernels.engine.assistant import Assistant
from slipstream.kernels.engine.draft import DraftModel
from slipstream.kernels.engine.engine import Engine, load
from slipstream.kernels.engine.model import Model

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "max_position_embeddings": 4096,
    "initializer_range": 0.08,
    "sliding_window": 16,
}
PROMPT = torch.randint(512, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def make_assistant(**changes: Any) -> Gemma4AssistantForCausalLM:
    """A random one of four layers, as E4B's: three with a window, one without."""
    torch.manual_seed(1)
    text = Gemma4TextConfig(
        **{**SIZES, "hidden_size": 64, **changes},
        num_hidden_layers=4,
        num_kv_shared_layers=4,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=0,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )
    config = Gemma4AssistantConfig(
        text_config=text,
        backbone_hidden_size=128,
        use_ordered_embeddings=True,
        num_centroids=32,
        centroid_intermediate_top_k=4,
    )
    assistant = Gemma4AssistantForCausalLM(config).eval()
    with torch.no_grad():
        assistant.masked_embedding.token_ordering.copy_(torch.randperm(512))
    return assistant


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 4 with its assistant beside it."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        **SIZES,
        hidden_size=128,
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    folder = tmp_path_factory.mktemp("pair")
    Gemma4ForCausalLM(config).save_pretrained(folder)
    make_assistant().save_pretrained(folder / "drafter")
    return folder


def engine_with(model_dir: Path, tmp_path: Path, **levers: str) -> Engine:
    (tmp_path / "levers.json").write_text(
        json.dumps({"dtype": "float32", "threads": "1", **levers})
    )
    return load(tmp_path, model_dir, 2048)


@pytest.mark.parametrize("length", [9, 40])
def test_the_assistant_guesses_as_transformers_does(
    pair: Path, length: int, tmp_path: Path
) -> None:
    """Within the window and past it; from the keys of the prompt, which both have."""
    prompt = PROMPT[:length]
    target = Gemma4ForCausalLM.from_pretrained(pair, dtype=torch.float32).eval()
    assistant = Gemma4AssistantForCausalLM.from_pretrained(pair / "drafter", dtype=torch.float32)
    embed = target.get_input_embeddings()
    with torch.inference_mode():
        seen = target(
            torch.tensor([prompt]), output_hidden_states=True, return_shared_kv_states=True
        )
        word, row = seen.logits[:, -1:].argmax(-1), seen.hidden_states[-1][:, -1:]
        expected = []
        for _ in range(6):
            guessed = assistant.eval()(
                inputs_embeds=torch.cat((embed(word), row), -1),
                attention_mask=torch.ones(1, length + 1),
                position_ids=torch.tensor([[length]]),
                shared_kv_states=seen.shared_kv_states,
            )
            word, row = guessed.logits.argmax(-1), guessed.last_hidden_state
            expected.append(int(word))
        engine = engine_with(pair, tmp_path, draft="assistant-4")
        (last,) = engine.model.choose(prompt)
        assert engine._drafter is not None
        assert engine._drafter.guess(last, engine.model.normed[0], 6) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("draft", ["assistant-4", "assistant-adaptive"])
def test_the_assistant_is_lossless(pair: Path, draft: str, tmp_path: Path) -> None:
    plain = engine_with(pair, tmp_path)
    drafted = engine_with(pair, tmp_path, draft=draft, cache="static", attention="grouped")
    for start in range(2):
        prompt = PROMPT[start : start + 20]
        assert drafted.generate(prompt, 300) == plain.generate(prompt, 300)
    assert drafted.acceptance()


@pytest.mark.parametrize("step", ["eager", "native"])
@pytest.mark.parametrize("draft", ["model-4", "model-adaptive"])
def test_a_draft_model_is_lossless(draft: str, step: str, home: Path, tmp_path: Path) -> None:
    """One that is nearly always right and one that often isn't: itself, and itself spoilt."""
    model_dir = tmp_path / "model"
    shutil.copytree(fetch_model("random:tiny-llama"), model_dir)
    levers = {"dtype": "bfloat16", "step": step} if step == "native" else {}
    plain = engine_with(model_dir, tmp_path, **levers)
    expected = [plain.generate(PROMPT[i : i + 20], 460) for i in range(3)]
    shutil.copytree(model_dir, tmp_path / "twin")
    (tmp_path / "twin").rename(model_dir / "drafter")
    drafted = engine_with(model_dir, tmp_path, draft=draft, **levers)
    assert [drafted.generate(PROMPT[i : i + 20], 460) for i in range(3)] == expected
    shares = drafted.acceptance()
    assert len(shares) == (4 if draft == "model-4" else 7)
    assert min(shares) > 0.98  # but for near-ties, which a batch rounds otherwise
    config = json.loads((model_dir / "drafter" / "config.json").read_text())
    (model_dir / "drafter" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 9.0}))
    wrong = engine_with(model_dir, tmp_path, draft=draft, **levers)
    assert [wrong.generate(PROMPT[i : i + 20], 460) for i in range(3)] == expected
    assert max(wrong.acceptance()) < 0.9


def test_a_draft_model_with_a_shorter_context_falls_silent(home: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(fetch_model("random:tiny-llama"), model_dir)
    shutil.copytree(model_dir, tmp_path / "twin")
    (tmp_path / "twin").rename(model_dir / "drafter")
    config = json.loads((model_dir / "drafter" / "config.json").read_text())
    short = {**config, "max_position_embeddings": 48}
    (model_dir / "drafter" / "config.json").write_text(json.dumps(short))
    drafted = engine_with(model_dir, tmp_path, draft="model-4")
    expected = engine_with(model_dir, tmp_path).generate(PROMPT, 60)
    assert drafted.generate(PROMPT, 60) == expected
    assert sum(drafted._acceptance.offered) < 16  # eight positions were left
    assert drafted.generate(PROMPT * 2, 20) == engine_with(model_dir, tmp_path).generate(
        PROMPT * 2, 20
    )


def test_a_draft_model_is_whole_whatever_is_left_of_the_model(home: Path, tmp_path: Path) -> None:
    """Nor has it to fit what the model is held in."""
    model_dir = tmp_path / "model"
    shutil.copytree(fetch_model("random:tiny-llama"), model_dir)
    shutil.copytree(model_dir, model_dir / "drafter")
    lossy = {"skip": "1", "vocab": "half", "window": "128"}
    engine = engine_with(model_dir, tmp_path, draft="model-4", **lossy)
    drafter = engine._drafter
    assert isinstance(drafter, DraftModel)
    assert isinstance(drafter.model, Model)
    assert len(drafter.model.layers) == 3
    assert drafter.model.levers.vocab == "all"
    plain = engine_with(model_dir, tmp_path, **lossy)
    assert engine.generate(PROMPT, 100) == plain.generate(PROMPT, 100)


def test_the_assistant_reads_layers_of_its_kind_past_a_shorter_window(
    pair: Path, tmp_path: Path
) -> None:
    whole = engine_with(pair, tmp_path, draft="assistant-4")
    short = engine_with(pair, tmp_path, draft="assistant-4", window="128")
    assert isinstance(whole._drafter, Assistant)
    assert isinstance(short._drafter, Assistant)
    assert short._drafter._caches == whole._drafter._caches
    assert short.generate(PROMPT, 40) == whole.generate(PROMPT, 40)


def test_what_cannot_guess_is_refused(pair: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draft=model-4: the model's folder has no drafter/"):
        engine_with(tiny_llama, tmp_path, draft="model-4")
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    shutil.copytree(pair / "drafter", other / "drafter")
    with pytest.raises(ValueError, match="draft=assistant-4: guesses for Gemma 4 alone"):
        engine_with(other, tmp_path, draft="assistant-4")
    shutil.rmtree(other / "drafter")
    shutil.copytree(tiny_llama, other / "drafter")
    config = json.loads((other / "config.json").read_text())
    (other / "drafter" / "config.json").write_text(json.dumps({**config, "vocab_size": 500}))
    with pytest.raises(ValueError, match="its vocabulary of 500 isn't the model's of 512"):
        engine_with(other, tmp_path, draft="model-4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 16}, "layer 0 needs 2 key/value heads of 16, this model has 2 of 32"),
        ({"num_key_value_heads": 1}, "needs 1 key/value heads of 32, this model has 2 of 32"),
    ],
)
def test_an_assistant_of_another_model_is_refused(
    pair: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(pair, model_dir)
    make_assistant(**changes).save_pretrained(model_dir / "drafter")
    with pytest.raises(ValueError, match=message):
        engine_with(model_dir, tmp_path, draft="assistant-4")
