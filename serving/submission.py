"""A submission, started: the folder's command in its environment, on a free port."""

import os
from pathlib import Path

from slipstream.evaluation.manifest import Manifest

from .running import RunningServer, free_port, passed


def start(folder: Path, manifest: Manifest, programs: Path, log: Path) -> RunningServer:
    """Return the submission's server on a free port, to be used with `with`.

    Args:
        programs: the folder whose `python` is meant.
        log: where its output goes.
    """
    port = free_port()
    environ = {
        **passed(),
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "MODEL_ID": manifest.model_id,
        "SERVED_MODEL_NAME": manifest.served_model_name,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        **manifest.env,
    }
    command = ["env", "-C", str(folder.resolve()), *manifest.serve]
    return RunningServer(command, port, log, environ=environ)
