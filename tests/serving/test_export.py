"""An exported variant, started as a challenge's harness starts it: by its manifest alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from by_manifest import run_by_manifest

from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.models import with_drafter
from slipstream.kernels.engine.engine import load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import read_tree, seed_tree
from slipstream.memory.store import open_memory
from slipstream.serving.export import export, make_manifest
from slipstream.serving.running import free_port
from slipstream.serving.story import tell

RECORDED = Path(__file__).resolve().parents[2] / "notebooks/data/first-run.db"
LEVERS = {"step": "native", "weights": "int4-g32", "head": "int8"}
TREE = seed_tree({**SEED_SETTINGS, **LEVERS})
RULES = load_challenge("smollm2-cpu")


@pytest.fixture(scope="module")
def exported(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "submission"
    assert export(TREE, RULES, smollm2, folder, "# a story\n", lambda _: None).folder == folder
    return folder


def test_it_runs_by_its_manifest_without_slipstream(
    exported: Path, python: Path, smollm2: Path, tmp_path: Path
) -> None:
    with run_by_manifest(exported, python, tmp_path) as server:
        listed = httpx.get(f"{server.url}/models").json()["data"]
        assert [model["id"] for model in listed] == ["smollm2-cpu"]
        body = {
            "model": "smollm2-cpu", "prompt": [504, 1570, 282], "max_tokens": 12, "temperature": 0,
            "ignore_eos": True, "add_special_tokens": False, "return_token_ids": True,
        }  # fmt: skip
        answer = httpx.post(f"{server.url}/completions", json=body, timeout=60).json()
    expected = load(exported, smollm2, 512).generate([504, 1570, 282], 12)
    assert answer["choices"][0]["token_ids"] == expected


def test_everything_is_there_and_hashed(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert set(manifest) == {
        "name", "dependencies", "model_id", "served_model_name", "port", "serve", "env"
    }  # fmt: skip
    assert all("==" in dependency for dependency in manifest["dependencies"])
    written = {name: (exported / name).read_bytes() for name in TREE.files}
    assert written == TREE.files
    command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=exported, check=False).returncode == 0
    hashed = {line[66:] for line in (exported / "SHA256SUMS").read_text().splitlines()}
    there = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    compiled = {name for name in there if "__pycache__" in name}  # by the tests that ran it
    assert there - compiled - hashed == {"SHA256SUMS"}
    assert not [name for name in hashed if "__pycache__" in name]


def test_a_changed_file_is_noticed(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "engine" / "engine.py").write_text("changed")
    command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "engine/engine.py" in done.stdout
    assert read_tree(exported).files["engine/engine.py"] != b"changed"


def test_a_model_of_the_hub_keeps_its_name() -> None:
    manifest = make_manifest(TREE, load_challenge("gemma4-e4b-a10g"))
    assert manifest["model_id"] == "google/gemma-4-E4B-it"


def test_what_drafts_goes_along(
    tiny_llama: Path, shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the model does, too: on the Hub nothing lies beside it."""
    tree = seed_tree({**TREE.settings, "draft": "model-4"})
    assert make_manifest(tree, load_challenge("gemma4-e4b-a10g"))["model_id"] == "model"
    with monkeypatch.context() as patch:
        patch.setenv("SLIPSTREAM_HOME", str(shared_home))
        both = with_drafter(tiny_llama, "random:tiny-llama")
    export(tree, RULES, both, tmp_path / "out", "", lambda _: None)
    found = tmp_path / "out" / "model" / "drafter" / "model.safetensors"
    assert found.is_file()
    assert not found.is_symlink()


def test_what_is_there_is_not_overwritten(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(SlipstreamError, match="not empty; name another folder"):
        export(TREE, RULES, smollm2, tmp_path, "", lambda _: None)
    with pytest.raises(SlipstreamError, match=r"can't write .*mine/below: "):
        export(TREE, RULES, smollm2, tmp_path / "mine" / "below", "", lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_the_story_has_the_figures_on_record(tmp_path: Path) -> None:
    shutil.copy(RECORDED, tmp_path / "recorded.db")
    with open_memory(f"sqlite:///{tmp_path}/recorded.db") as memory:
        variant = memory.variant("3fbd")
        story = tell(memory, variant.id, variant.settings, RULES, make_manifest(TREE, RULES))
    assert "4.48× transformers-bf16 (95 % interval 4.19 to 4.78, " in story
    assert "tier near-lossless" in story
    lineage = [line for line in story.splitlines() if line.startswith("- `")]
    assert lineage[0].startswith(f"- `{variant.id}`: ")
    assert len(lineage) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no folder with a config.json, and no ORG/NAME"),
        (["--model", "{model}", "--port", "{taken}"], "Address already in use; --port names"),
    ],
)
def test_the_server_says_in_one_line_what_is_wrong(
    arguments: list[str], message: str, exported: Path, smollm2: Path
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names: dict[str, Any] = {"model": smollm2, "taken": taken.getsockname()[1]}
        command = [sys.executable, "serve.py", "--tree", ".", "--port", str(free_port())]
        command += [argument.format(**names) for argument in arguments]
        done = subprocess.run(command, cwd=exported, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
