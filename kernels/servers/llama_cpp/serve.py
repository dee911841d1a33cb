"""llama.cpp's own server, behind the challenge's contract.

Its library is the wheel `xllamacpp`. Its server listens on a port of its own; what comes in at PORT
is put into its words (tools/server/README.md in github.com/ggml-org/llama.cpp).
"""

import http.client
import json
import os
import sys
from pathlib import Path
from typing import Any

import xllamacpp
from contract import num_threads, serve, settings

_NUM_CTX = int(os.environ.get("MAX_CONTEXT", "4096"))
_FLASH = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
_CACHE_TYPES = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}


def find_gguf(model: Path) -> Path:
    """Return the GGUF of a model, a file or the only one in a folder."""
    files = [model] if model.suffix == ".gguf" else sorted(model.glob("*.gguf"))
    if len(files) != 1:
        sys.exit(f"llama-cpp needs a model with one .gguf; {model} has {len(files)}")
    return files[0]


def parameters(levers: dict[str, str], model: Path) -> Any:
    """Return llama.cpp's parameters for these levers."""
    wanted = xllamacpp.CommonParams()
    wanted.model.path = str(model)
    wanted.hostnames, wanted.port = ["127.0.0.1"], 0
    wanted.n_ctx, wanted.n_parallel = _NUM_CTX, 1
    wanted.cache_prompt = levers["prefix-cache"] == "on"
    wanted.n_ubatch = int(levers["batch"])
    wanted.n_batch = max(2048, wanted.n_ubatch)
    wanted.no_extra_bufts = levers["repack"] == "off"
    for threads in (wanted.cpuparams, wanted.cpuparams_batch):
        threads.n_threads = num_threads(levers["threads"])
        threads.poll = int(levers["poll"])
    cache_type = getattr(xllamacpp.ggml_type, _CACHE_TYPES[levers["kv-cache"]])
    wanted.cache_type_k = wanted.cache_type_v = cache_type
    flash = f"LLAMA_FLASH_ATTN_TYPE_{_FLASH[levers['flash-attention']]}"
    wanted.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, flash)
    return wanted


class LlamaCpp:
    """llama.cpp's server as `Backend`."""

    def __init__(self, levers: dict[str, str], model: Path) -> None:
        self._server = xllamacpp.Server(parameters(levers, model))
        address = self._server.listening_address.removeprefix("http://")
        self._http = http.client.HTTPConnection(address, timeout=3600)
        # Probabilities come only of tokens that are whole characters: one that is, is forced.
        self._whole = self.encode("a", special=False)[0]

    def generate(self, prompt: list[int], num_tokens: int, ignore_eos: bool) -> list[int]:
        """Return greedy tokens."""
        asked = {"n_predict": num_tokens, "ignore_eos": ignore_eos, "return_tokens": True}
        tokens: list[int] = self._post("/completion", prompt=prompt, temperature=0, **asked)[
            "tokens"
        ]
        return tokens

    def logprobs(self, prompt: list[int], count: int) -> list[tuple[int, float]]:
        """Return the log-probabilities of the likeliest tokens, in order."""
        answer = self._post(
            "/completion",
            prompt=prompt,
            n_predict=1,
            temperature=0,
            n_probs=count,
            logit_bias=[[self._whole, 1e6]],
        )
        top = answer["completion_probabilities"][0]["top_logprobs"]
        return [(one["id"], one["logprob"]) for one in top]

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the tokens of a text."""
        tokens: list[int] = self._post("/tokenize", content=text, add_special=special)["tokens"]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return str(self._post("/detokenize", tokens=tokens)["content"])

    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a conversation."""
        text = self._post("/apply-template", messages=messages)["prompt"]
        tokens: list[int] = self._post(
            "/tokenize", content=text, add_special=False, parse_special=True
        )["tokens"]
        return tokens

    def _post(self, path: str, **fields: Any) -> Any:
        body = json.dumps(fields)
        try:
            self._http.request("POST", path, body, {"content-type": "application/json"})
            answer = self._http.getresponse()
            text = answer.read()
        finally:  # stopped between requests, it would find the connection too old
            self._http.close()
        if answer.status != http.client.OK:
            raise ValueError(f"llama.cpp at {path}: {answer.status}: {text[:300]!r}")
        return json.loads(text)


if __name__ == "__main__":
    serve(LlamaCpp(settings(), find_gguf(Path(os.environ["MODEL_ID"]))))
