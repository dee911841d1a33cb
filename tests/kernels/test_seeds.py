"""Served engines as seeds: their levers, their files, and what is refused."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest

from slipstream.kernels.catalogue import SHIPPED, read_catalogue
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import SEED_SETTINGS, Machine, Risk
from slipstream.kernels.seeds import (
    catalogue_of,
    read_seed,
    remade,
    seed_of,
    seed_server,
    server_names,
)
from slipstream.kernels.variants import Tree, VariantStore, seed_tree

SHAPE = ModelShape(512, 1024, 4, 8, 2, 64, 32_000)
MACHINE = Machine("cpu", 4, has_compiler=True)
ENVIRON = {
    "MODEL_ID": "/m", "SERVED_MODEL_NAME": "it", "HOST": "127.0.0.1", "PORT": "8123",
    "MAX_CONTEXT": "2048",
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama-cpp", "transformers", "vllm"])
def test_what_ships_has_levers_and_a_name(name: str) -> None:
    assert name in server_names()
    tree = seed_server(name)
    assert tree.serves
    catalogue = catalogue_of(tree)
    assert tree.settings == catalogue.seed
    assert tree.settings["engine"] == name
    assert len(catalogue.levers) > 4
    for lever in catalogue.levers.values():
        assert lever.summary
        for value in lever.values:
            assert catalogue.refusal(SHAPE, {**catalogue.seed, lever.name: value}, MACHINE) is None
    assert "no-such" in str(catalogue.refusal(SHAPE, {"no-such": "1"}, MACHINE))
    assert "threads=many" in str(SHIPPED.refusal(SHAPE, {"threads": "many"}, MACHINE))


def test_a_tree_of_what_ships_follows_from_its_settings() -> None:
    for tree in (seed_server("llama-cpp"), seed_tree(SEED_SETTINGS)):
        name = next(name for name in tree.settings if name in ("batch", "fuse"))
        pulled = tree.with_settings({**tree.settings, name: "128" if name == "batch" else "qkv"})
        assert remade(pulled.settings).id == pulled.id
    assert seed_of("no-such") is None
    shipped = seed_of("")
    assert shipped is not None
    assert shipped.id == seed_tree(SEED_SETTINGS).id


def test_threads_tell_settings_apart_where_they_compute() -> None:
    text = '[levers.threads]\nvalues = ["all", "2", "4"]\n'
    served = read_catalogue("it", text)
    two, gpu = replace(MACHINE, num_cores=2), replace(MACHINE, device="cuda", num_cores=8)
    every, both, four = (served.key({"threads": n}, two) for n in ("all", "2", "4"))
    assert every == both != four  # a server starts as many as it is told
    assert served.key({"threads": "2"}, gpu) != served.key({}, gpu)
    assert SHIPPED.key({"threads": "2"}, gpu) == SHIPPED.key({}, gpu)
    assert SHIPPED.key({"threads": "1"}, two) != SHIPPED.key({}, two)
    only_some = read_catalogue("it", '[levers.threads]\nvalues = ["1", "2"]')
    assert only_some.key({"threads": "1"}, two) != only_some.key({"threads": "2"}, two)


def test_bytes_follow_the_bits_of_a_weight() -> None:
    text = '[levers.w]\nvalues = ["a", "b"]\nrisk = "rounding"\nweight_bits = [16, 4]\n'
    catalogue = read_catalogue("it", text)
    assert catalogue.levers["w"].risk is Risk.ROUNDING
    dense, packed = (catalogue.read_bytes(SHAPE, {"w": value}) for value in "ab")
    cache = dense - 4 / 3 * (dense - packed)  # what doesn't shrink
    assert packed == pytest.approx((dense - cache) / 4 + cache)
    assert dense == pytest.approx(SHIPPED.read_bytes(SHAPE, {"cache": "static"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("levers = [", "levers.toml: "),
        ("[levers.x]\nvalue = ['1']", "x: unknown 'value'; valid: "),
        ("[levers.x]\nvalues = [1]", "x: values has to be a list of strings"),
        ("levers = 3", "levers has to be tables, none of them named 'engine'"),
        ("[levers.engine]\nvalues = ['1']", "levers has to be tables, none of them named 'engine'"),
        ("[levers.threads]\nvalues = ['auto']", "threads: values have to be numbers of cores"),
        ("[levers.x]\nvalues = ['1']\nrisk = 'high'", "x: risk: 'high' is not a valid Risk; valid"),
        ("[levers.x]\nvalues = ['1', '2']\nweight_bits = [16]", "x: weight_bits has to hold one"),
    ],
)
def test_wrong_levers_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^levers\.toml") as caught:
        read_catalogue("it", text)
    assert message in str(caught.value)


def test_a_folder_becomes_a_seed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json in "):
        read_seed(tmp_path)
    manifest = {"name": "mine", "model_id": "m", "served_model_name": "m", "serve": ["true"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_seed(tmp_path).settings == {"engine": "mine"}
    (tmp_path / "levers.toml").write_text('[levers.x]\nvalues = ["1", "2"]\n')
    assert read_seed(tmp_path).settings == {"engine": "mine", "x": "1"}
    for given, message in (("[]", "not a table"), ('{"x": 1}', "x=1: not one of 1, 2")):
        (tmp_path / "levers.json").write_text(given)
        with pytest.raises(ValueError, match=f"^levers.json: {message}"):
            read_seed(tmp_path)
    (tmp_path / "levers.json").write_text('{"x": "2"}')
    assert read_seed(tmp_path).settings == {"engine": "mine", "x": "2"}
    (tmp_path / "start").write_text("#!/bin/sh\n")
    assert (VariantStore(tmp_path / "s").add(read_seed(tmp_path)) / "start").stat().st_mode & 0o100
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(8_000_000)
    with pytest.raises(ValueError, match=r"bytes, limit 4,000,000; weights belong into"):
        read_seed(tmp_path)


def dry_run(tree: Tree, into: Path) -> list[str]:
    """Return the words of the command that vLLM's seed would start."""
    into.mkdir()
    for name, content in tree.files.items():
        (into / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "serve.py", "--dry-run"],
        cwd=into, env=ENVIRON, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shlex.split(done.stdout)


def test_vllm_is_started_with_what_its_levers_say(tmp_path: Path) -> None:
    tree = seed_server("vllm")
    plain = dry_run(tree, tmp_path / "plain")
    assert plain[:3] == ["vllm", "serve", "/m"]
    assert {"--enforce-eager", "--no-async-scheduling"} < set(plain)
    assert plain[plain.index("--max-logprobs") + 1] == "-1"
    pulled = {
        "checkpoint": "quantised-head", "drafter": "assistant", "depth": "7",
        "async-scheduling": "on", "cuda-graphs": "full-and-piecewise", "attention": "TRITON_ATTN",
    }  # fmt: skip
    line = dry_run(tree.with_settings({**tree.settings, **pulled}), tmp_path / "pulled")
    assert line[2] == "/m/quantised-head"
    given = dict(pairwise(line))
    assert json.loads(given["--compilation-config"]) == {"cudagraph_mode": "FULL_AND_PIECEWISE"}
    drafter = {"model": "/m/assistant", "num_speculative_tokens": 7}
    assert json.loads(given["--speculative-config"]) == drafter
    assert given["--attention-backend"] == "TRITON_ATTN"
    assert "--async-scheduling" in line
    assert "--enforce-eager" not in line


def test_every_combination_of_vllms_levers_makes_a_command() -> None:
    tree = seed_server("vllm")
    scope: dict[str, object] = {"__name__": "serve"}
    exec(tree.files["serve.py"].decode(), scope)  # ours, as it ships
    command = scope["command"]
    assert callable(command)
    levers = catalogue_of(tree).levers
    lines = {
        tuple(command(dict(zip(levers, values, strict=True)), ENVIRON))
        for values in product(*(lever.values for lever in levers.values()))
    }
    assert len(lines) > 1000
    assert all(all(isinstance(word, str) for word in line) for line in lines)
