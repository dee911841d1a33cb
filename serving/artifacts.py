"""A submission's benchmark from beginning to end, and the files that the challenge left of one."""

import importlib.metadata as metadata
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from slipstream.evaluation import sandbox
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.gates import log_softmax
from slipstream.evaluation.hardware import detect_hardware
from slipstream.evaluation.manifest import Manifest, read_manifest
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.prompts import Split, load_prompts, texts_of
from slipstream.evaluation.reference import Reference
from slipstream.kernels.census import read_shape

from .bench import Bench, Decoded, Identity, Record, Say, Scored, Timed, overall, speed
from .submission import start

_IDENTITY = 4  # captured answers that are rescored
_PACKAGES = ("torch", "transformers", "vllm", "slipstream-llm")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        prompts: how many; the challenge's own number is the most.
        num_tokens: output tokens of each.
        repeats: passes over all of them.
    """

    prompts: int
    num_tokens: int
    repeats: int


@dataclass(frozen=True)
class Measured:
    """What was seen of one submission."""

    manifest: Manifest
    timed: tuple[Timed, ...]
    decoded: tuple[Decoded, ...]
    scored: tuple[Scored, ...]
    reference: tuple[Scored, ...]
    identity: Identity | None

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: the challenge's fields, then ours."""
        tps, low, high = speed(self.timed)
        latencies = [one.latency_ms for one in self.timed]
        duration_s = sum(latencies) / 1e3
        both = sum(one.prompt_tokens + one.output_tokens for one in self.timed)
        found = {
            "model": self.manifest.served_model_name,
            "tps": tps,
            "output_tps": tps,
            "total_tps": both / duration_s,
            "ppl": overall(self.scored) if self.scored else None,
            "ppl_num_tokens": sum(one.num_tokens for one in self.scored),
            "completed": len(self.timed),
            "num_prompts": len({one.prompt for one in self.timed}),
            "output_len": self.timed[0].output_tokens,
            "duration_s": duration_s,
            "mean_e2e_latency_ms": float(np.mean(latencies)),
            "p99_e2e_latency_ms": float(np.quantile(latencies, 0.99)),
            "max_concurrency": 1,
            "repeats": 1 + max(one.repeat for one in self.timed),
            "tps_low": low,
            "tps_high": high,
        }
        if self.scored:
            ratio = overall(self.scored) / overall(self.reference)
            found |= {"ppl_reference": overall(self.reference), "ppl_rise": ratio - 1}
        if self.identity is not None:
            found["identity"] = asdict(self.identity)
        return found


def bench_submission(
    folder: Path, rules: Challenge, plan: Plan, programs: Path, log: Path, say: Say
) -> Measured:
    """Start a submission and measure it by a challenge's prompts and reference.

    Args:
        programs: the `bin` folder whose Python runs it.
        log: where its server's output goes.

    Raises:
        SlipstreamError: it doesn't start, or answers what it shouldn't.
    """
    manifest = read_manifest(folder)
    if rules.workload.prompts != "general":
        raise SlipstreamError(f"challenge {rules.name}: its prompts are no texts to chat with")
    model = fetch_model(rules.model, say)
    prompts = [
        prompt
        for prompt in load_prompts(rules.workload, model, read_shape(model).vocab_size)
        if prompt.split is Split.PUBLIC
    ]
    chosen = prompts[: plan.prompts]
    texts = texts_of(rules.workload)
    max_context = rules.workload.max_context
    reference = Reference(model, rules.quality, max_context=max_context, sandbox=sandbox.choose())
    try:
        say("the reference's documents")
        documents = reference.documents(prompts) if rules.quality.enabled else ()
        noise = reference.noise(prompts, say) if documents else None
        records = [Record(d.prompt.id, d.prompt.tokens, d.tokens) for d in documents]
        base = [Scored(d.prompt.id, len(d.tokens), _nll(d.logits(), d.tokens)) for d in documents]
        say(f"starting {manifest.name}")
        with (
            start(folder, manifest, programs, log) as server,
            httpx.Client(base_url=server.url) as http,
        ):
            bench = Bench(http, manifest.served_model_name, say)
            chats = [(prompt.id, texts[prompt.id]) for prompt in chosen]
            timed = bench.time_chats(chats, plan.num_tokens, plan.repeats)
            asked = [(prompt.id, prompt.tokens) for prompt in chosen]
            decoded = bench.capture(asked, plan.num_tokens)
            scored = tuple(bench.perplexity(records))
            identity = None
            if noise is not None:
                identity = bench.identity(decoded[:_IDENTITY], reference.logits, noise)
    finally:
        reference.close()
    return Measured(manifest, tuple(timed), tuple(decoded), scored, tuple(base), identity)


def write_artifacts(found: Measured, into: Path) -> None:
    """Write the files of a run into a folder."""
    into.mkdir(parents=True, exist_ok=True)
    _write(into / "summary.json", found.summary)
    _write_lines(into / "benchmark.jsonl", map(asdict, found.timed))
    _write_lines(into / "decode_outputs.jsonl", map(asdict, found.decoded))
    rows = [{**asdict(one), "ppl": one.ppl} for one in found.scored]
    _write_lines(into / "ppl_results.jsonl", rows)
    _write(into / "ppl_summary.json", _ppl_summary(found.scored, found.reference))
    _write(
        into / "run_environment.json", {**environment(), "manifest": found.manifest.model_dump()}
    )


def environment() -> dict[str, Any]:
    """Return what a figure depends on besides the submission."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    hardware = detect_hardware()
    return {
        "machine": hardware.label,
        "cpu": hardware.cpu,
        "gpus": list(hardware.gpus),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def _ppl_summary(scored: Sequence[Scored], reference: Sequence[Scored]) -> dict[str, Any]:
    if not scored:
        return {"ppl": None, "num_tokens": 0, "num_records": 0, "nll": None}
    return {
        "ppl": overall(scored),
        "num_tokens": sum(one.num_tokens for one in scored),
        "num_records": len(scored),
        "nll": sum(one.nll for one in scored),
        "ppl_reference": overall(reference),
    }


def _nll(logits: np.ndarray[Any, Any], tokens: Sequence[int]) -> float:
    return -float(log_softmax(logits)[np.arange(len(tokens)), list(tokens)].sum())


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
