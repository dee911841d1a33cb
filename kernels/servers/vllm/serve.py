"""vLLM's own server with the levers as its arguments; `--dry-run` prints the command instead.

Beside the model's files, in its folder, may lie `quantised/` and `quantised-head/`, the same model
with int4 layers, and with an int4 head of its own besides, and `assistant/`, its drafter.
"""

import json
import os
import shlex
import sys
from pathlib import Path

_CHECKPOINTS = {"given": ".", "quantised": "quantised", "quantised-head": "quantised-head"}


def command(levers: dict[str, str], environ: dict[str, str]) -> list[str]:
    """Return the command line of the server.

    Args:
        environ: has MODEL_ID, SERVED_MODEL_NAME, HOST and PORT.
    """
    model = Path(environ["MODEL_ID"])
    line = ["vllm", "serve", str(model / _CHECKPOINTS[levers["checkpoint"]])]
    line += ["--served-model-name", environ["SERVED_MODEL_NAME"]]
    line += ["--host", environ["HOST"], "--port", environ["PORT"]]
    line += ["--max-model-len", environ.get("MAX_CONTEXT", "4096")]
    line += ["--max-logprobs", "-1"]  # all of them: quality is judged by whole distributions
    # Two stand side by side: a candidate and its rival.
    line += ["--gpu-memory-utilization", "0.42"]
    line += ["--dtype", "bfloat16", "--kv-cache-dtype", levers["kv-cache"]]
    line += ["--max-num-seqs", levers["sequences"]]
    line += [_switch("async-scheduling", levers), _switch("enable-prefix-caching", levers)]
    if levers["attention"] != "auto":
        line += ["--attention-backend", levers["attention"]]
    if levers["cuda-graphs"] == "off":
        line += ["--enforce-eager"]
    else:
        mode = {"cudagraph_mode": levers["cuda-graphs"].upper().replace("-", "_")}
        line += ["--compilation-config", json.dumps(mode)]
    if levers["drafter"] != "off":
        line += ["--speculative-config", json.dumps(_drafting(levers, model))]
    return line


def _switch(name: str, levers: dict[str, str]) -> str:
    return f"--{name}" if levers[name] == "on" else f"--no-{name}"


def _drafting(levers: dict[str, str], model: Path) -> dict[str, object]:
    depth: dict[str, object] = {"num_speculative_tokens": int(levers["depth"])}
    if levers["drafter"] == "ngram":
        return {"method": "ngram", "prompt_lookup_max": 4, **depth}
    return {"model": str(model / "assistant"), **depth}


if __name__ == "__main__":
    chosen = json.loads(Path(__file__).with_name("levers.json").read_text())
    line = command(chosen, dict(os.environ))
    if "--dry-run" in sys.argv[1:]:
        print(shlex.join(line))
    else:
        os.execvp(line[0], line)
