"""The notebooks run from top to bottom on the recorded memory."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_MEMORY", f"sqlite:///{NOTEBOOKS}/data/first-run.db")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = [str(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert sum("vega" in text for text in html) >= 2  # charts
    assert sum("<table" in text for text in html) >= 3  # frames
