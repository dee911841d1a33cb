"""Wheel and sdist hold everything and work outside the repository."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and a wheel from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_wheel_holds_every_room_and_no_tests(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "slipstream/cli.py",
        "slipstream/py.typed",
        "slipstream/graph/build.py",
        "slipstream/kernels/engine/engine.py",
        "slipstream/challenges/smollm2-cpu.toml",
        "slipstream/serving/serve.py",
        "slipstream/serving/server/app.py",
        "slipstream/evaluation/prompts.jsonl",
        "slipstream/evaluation/baseline_engines/transformers/engine/__init__.py",
        "slipstream/memory/migrations/versions/0001_first.py",
        "slipstream/memory/migrations/script.py.mako",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests", "notebooks"))]
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = archive.getnames()
    assert any(name.endswith("src/slipstream/graph/build.py") for name in inside)


def test_installed_wheel_works_elsewhere(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "SLIPSTREAM_HOME": str(tmp_path / "home"),
    }

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert python("import slipstream; print(slipstream.__file__)").startswith(str(site))
    assert python("import slipstream; slipstream.build_graph().compile()") == ""
    assert (
        python("from slipstream.evaluation.challenge import challenge_names as c; print(len(c()))")
        == "4"
    )
    # A real engine from the installed tree, on a real model, in its child process.
    assert (
        python(
            "from slipstream.evaluation.models import fetch_model\n"
            "from slipstream.evaluation.child import ChildEngine\n"
            "from slipstream.kernels.variants import VariantStore, seed_tree\n"
            "from pathlib import Path\n"
            "model = fetch_model('random:tiny-llama')\n"
            "tree = VariantStore(Path('variants')).add(seed_tree({})).resolve()\n"
            "with ChildEngine(tree, model, max_context=64) as engine:\n"
            "    print(len(engine.generate([1, 2], 5).tokens))"
        )
        == "5"
    )
    done = subprocess.run(
        [sys.executable, "-m", "slipstream.cli", "runs", "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]"
