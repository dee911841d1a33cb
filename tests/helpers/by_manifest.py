"""Starts a submission as a challenge's harness does: by its manifest alone."""

import json
import os
from pathlib import Path

from slipstream.serving.running import RunningServer, free_port


def run_by_manifest(folder: Path, python: Path, scratch: Path) -> RunningServer:
    """Start what a manifest says, with its environment and nothing of this one's but PATH.

    Args:
        python: of the submission's own environment.
        scratch: where its log goes, and what it takes for its home.
    """
    manifest, port = json.loads((folder / "manifest.json").read_text()), free_port()
    environ = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(scratch),
        "MODEL_ID": manifest["model_id"],
        "SERVED_MODEL_NAME": manifest["served_model_name"],
        "HOST": "127.0.0.1",
        "PORT": str(port),
        **manifest["env"],
    }
    command = ["env", "-C", str(folder), *manifest["serve"]]
    return RunningServer(command, port, scratch / "log", environ=environ, start_s=120)
