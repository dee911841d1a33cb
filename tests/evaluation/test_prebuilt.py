"""Kernels that ship are built once; whoever changed them builds for itself and leaves nothing."""

import os
from pathlib import Path

import pytest
from tiny_challenge import TINY
from tiny_engines import write_engine

from slipstream.evaluation import sandbox
from slipstream.evaluation.bench import open_bench
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineFailedError
from slipstream.evaluation.prebuilt import kernels_for
from slipstream.kernels.engine.compiled import KERNELS, library_name
from slipstream.kernels.variants import Tree, VariantStore, seed_tree

SETTINGS = {"step": "native", "threads": "1"}
PROMPT = [3, 1, 4, 1, 5]
boxed = pytest.mark.skipif(bool(sandbox.problem()), reason=f"no sandbox: {sandbox.problem()}")


def changed(tree: Tree) -> Tree:
    source = tree.files["engine/step.cpp"] + b"/* mine */\n"
    return Tree({**tree.files, "engine/step.cpp": source})


def mapped(beginning: str) -> set[str]:
    """What this process or one that it started has loaded from paths that begin so."""
    parents, found = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[process.name] = (process / "stat").read_text().rpartition(")")[2].split()[1]
            found[process.name] = (process / "maps").read_text().splitlines()
        except OSError:
            continue

    def is_ours(process: str) -> bool:
        return process == str(os.getpid()) or (process in parents and is_ours(parents[process]))

    paths = {line.split()[-1] for own in filter(is_ours, found) for line in found[own] if line}
    return {path for path in paths if path.startswith(beginning)}


@boxed
def test_an_unchanged_engine_finds_them(home: Path, tiny_llama: Path, tmp_path: Path) -> None:
    told: list[str] = []
    kernels = kernels_for("cpu", told.append)
    assert kernels is not None
    assert told == ["building the engine's kernels, once"]
    assert kernels_for("cpu", told.append) == kernels
    assert len(told) == 1
    assert [path.name for path in kernels.iterdir()] == [library_name(*KERNELS["cpu"])]
    assert not list(kernels.parent.glob(".new-*"))
    store, answers = VariantStore(tmp_path), []
    for tree, loads in ((seed_tree(SETTINGS), True), (changed(seed_tree(SETTINGS)), False)):
        where, box = store.add(tree), sandbox.Sandbox()
        with ChildEngine(where, tiny_llama, max_context=64, sandbox=box, kernels=kernels) as engine:
            answers.append(engine.generate(PROMPT, 20).tokens)
            assert bool(mapped("/kernels/slipstream_step-")) == loads
    assert answers[0] == answers[1]


@boxed
def test_no_engine_can_leave_anything_there(home: Path, tmp_path: Path) -> None:
    kernels = kernels_for("cpu")
    before = {path: path.read_bytes() for path in (kernels or home).iterdir()}
    honest = "return [(sum(prompt) + i) % 8 for i in range(num_tokens)]"
    tree = write_engine(tmp_path / "t", (honest, "open('/kernels/left', 'w')"))
    box = sandbox.Sandbox()
    with (
        ChildEngine(tree, tree, max_context=64, sandbox=box, kernels=kernels) as engine,
        pytest.raises(EngineFailedError, match="Read-only file system"),
    ):
        engine.generate([1], 5)
    assert {path: path.read_bytes() for path in (kernels or home).iterdir()} == before


@boxed
def test_the_loop_s_engines_get_them(home: Path, tmp_path: Path) -> None:
    rules, tree = parse_challenge(TINY, source="tiny"), seed_tree(SETTINGS)
    store = VariantStore(tmp_path / "variants")
    store.add(tree)
    with open_bench(rules, store.path, tmp_path, seed=1) as bench:
        assert bench.evaluator.smoke(tree.id) == ""
        assert mapped("/kernels/slipstream_step-")
    assert not mapped("/kernels/slipstream_step-")


def test_where_they_cannot_be_built_each_engine_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("slipstream.evaluation.prebuilt._MODULE", "slipstream.nobody")
    assert kernels_for("cpu", told.append) is None
    assert told[-1].startswith("each engine builds its own kernels: ")
    assert "slipstream.nobody" in told[-1]
    assert kernels_for("cpu", told.append) is None  # and isn't asked again
    assert len(told) == 2
    assert not list((home / "kernels").glob("cpu-*"))
    monkeypatch.setattr("slipstream.evaluation.prebuilt.can_compile", lambda _: False)
    assert kernels_for("cpu", told.append) is None
    assert len(told) == 2
