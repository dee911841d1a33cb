"""A Python for what ships: it has the packages, and not slipstream."""

import site
import subprocess
import venv
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with this one's packages, but not slipstream."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # A line in a .pth names a folder; the .pth files in it, like slipstream's own, aren't read.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    found = folder / "bin" / "python"
    code = "import importlib.util as u, torch; print(u.find_spec('slipstream'))"
    done = subprocess.run([found, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    return found
