"""The notebooks run from top to bottom on the recorded memory, and leave it as it is."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebook_runs(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for somebody who has run nothing yet."""
    monkeypatch.delenv("SLIPSTREAM_MEMORY", raising=False)
    recorded = NOTEBOOKS / "data" / "first-run.db"
    before = recorded.read_bytes()
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = [str(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert sum("vega" in text for text in html) >= 2  # charts
    assert sum("<table" in text for text in html) >= 3  # frames
    assert recorded.read_bytes() == before
    assert (home / "memory.db").is_file()  # their own, in which nothing was found
