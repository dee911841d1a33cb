"""Time vLLM 0.24 at batch 1 on a model of a config's sizes with dummy weights.

    python benchmarks/peers/vllm/decode.py --config DIR --scheme bf16|int8|int4

Without tokenizer and checkpoint, one stream, greedy, CUDA graphs on, prefix cache off. The last
line on standard output is one JSON object. Schemes:
  bf16  as it is, tied head
  int4  GPTQ layout, groups of 128, symmetric, the head too (untied)
  int8  GPTQ layout, 8 bits, one scale a channel, symmetric, the head too (untied)
--head bf16 leaves the (then tied) head in bf16. --linear-backend marlin|machete forces a kernel.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # there may be no network to find one on
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # greedy draws nothing

BITS = {"int4": (4, 128), "int8": (8, -1)}
ARCHITECTURES = {
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def prepare_config(source: Path, into: Path, scheme: str, head: str) -> dict[str, Any]:
    """Write config.json as vLLM 0.24 and transformers 5.9 read it; return it."""
    config = json.loads((source / "config.json").read_text())
    if "text_config" in config:
        config = config["text_config"]
    kind = config["model_type"]
    config.setdefault("architectures", None)
    config["architectures"] = config["architectures"] or [ARCHITECTURES[kind]]
    config.pop("transformers_version", None)
    # transformers 5.9 knows only "dtype" and "torch_dtype"; dummy weights are made in this type
    config["dtype"] = "bfloat16"
    # transformers 5.17 and later write per_layer_config in the place of global_head_dim
    per_layer = config.pop("per_layer_config", None)
    if per_layer:
        dims = {overrides["head_dim"] for overrides in per_layer.values()}
        full = [i for i, t in enumerate(config["layer_types"]) if t == "full_attention"]
        known = all(set(overrides) == {"head_dim"} for overrides in per_layer.values())
        if not known or len(dims) != 1 or sorted(map(int, per_layer)) != full:
            raise SystemExit(f"per_layer_config not understood: {per_layer}")
        config["global_head_dim"] = dims.pop()
    for key in [k for k in config if config[k] is None]:
        del config[key]
    config.pop("quantization_config", None)
    if scheme in BITS:
        bits, group = BITS[scheme]
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": False,
            "sym": True,
            "lm_head": head == "same",
            "checkpoint_format": "gptq",
            # Left out, vLLM reads the quantised layers off the checkpoint's files: there are none
            # here, and it would build everything in bf16. Matched as substrings of a layer's name.
            "modules_in_block_to_quantize": [
                "model.layers.",
                "per_layer_model_projection",
                *(["lm_head"] if head == "same" else []),
            ],
        }
        if head == "same":
            config["tie_word_embeddings"] = False
    into.mkdir(parents=True, exist_ok=True)
    (into / "config.json").write_text(json.dumps(config, indent=1))
    return config


def engine_arguments(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of vllm.LLM."""
    arguments = {
        "model": str(model),
        "dtype": "bfloat16",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": options.max_model_len,
        "max_num_seqs": 1,
        "max_num_batched_tokens": options.max_model_len,
        "gpu_memory_utilization": options.memory,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "enforce_eager": False,
        "seed": 0,
        # one graph for decoding, one for a prompt of this length
        "cudagraph_capture_sizes": sorted({1, 2, 4, 8, options.prompt_tokens}),
    }
    if options.attention_backend != "default":
        arguments["attention_backend"] = options.attention_backend
    if options.linear_backend != "auto":
        arguments["linear_backend"] = options.linear_backend
    return arguments


def fill_dummy_weights() -> None:
    """Have vLLM's dummy weights look like weights.

    It leaves integers as memory lay, and makes Gemma 4's scalar of a layer and every norm about
    1e-3, so that all activations would be zeros.
    """
    import torch
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    plain = DummyModelLoader.load_weights

    def load_weights(self, model, model_config):
        plain(self, model, model_config)
        with torch.no_grad():
            done = set()  # a tied head is the embedding once more
            for name, tensor in model.state_dict().items():
                if tensor.data_ptr() in done:
                    continue
                done.add(tensor.data_ptr())
                if name.endswith("qweight"):
                    tensor.random_(-(2**31), 2**31 - 1)
                elif name.endswith(("norm.weight", "layer_scalar")):
                    tensor.fill_(1.0)
                elif name.endswith(".weight"):
                    tensor.mul_(30.0)  # from +-0.001 to about 0.017 of standard deviation

    DummyModelLoader.load_weights = load_weights


def check_head(llm, options: argparse.Namespace) -> dict[str, Any]:
    """Return which kernels run; say so when the head did not come out as asked."""

    def look(model):
        kernels = {}
        for name, module in model.named_modules():
            method = getattr(module, "quant_method", None)
            if method is None or name.endswith(".attn"):
                continue
            kernel = getattr(method, "kernel", None)
            label = type(kernel or method).__name__
            kernels.setdefault(label, []).append(name)
        head = model.lm_head.quant_method
        head = getattr(head, "kernel", None) or head
        biggest = sum(p.numel() * p.element_size() for p in model.lm_head.parameters())
        return {k: len(v) for k, v in kernels.items()}, type(head).__name__, biggest

    kernels, head, head_bytes = llm.apply_model(look)[0]
    if options.scheme in BITS and set(kernels) <= {k for k in kernels if "Unquantized" in k}:
        raise SystemExit(f"nothing was quantised: {kernels}")
    if options.scheme in BITS and options.head == "same" and "Unquantized" in head:
        print("the head was NOT quantised by vLLM; it runs in bf16", file=sys.stderr)
        options.head = "bf16 (could not be quantised)"
    return {"kernels": kernels, "head_kernel": head, "head_mb": round(head_bytes / 1e6, 1)}


def time_one(engine, prompt: list[int], new_tokens: int, name: str) -> tuple[float, float, int]:
    """Return seconds to the first token, seconds to the last and how many tokens came."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0.0,
        max_tokens=new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    first = last = None
    count = 0
    start = time.perf_counter()
    engine.add_request(name, {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            fresh = len(output.outputs[0].token_ids)
            if fresh:
                last = time.perf_counter()
                if first is None:
                    first = last
                    if fresh != 1:
                        raise SystemExit(f"the first step gave {fresh} tokens")
                count += fresh
    if first is None or last is None or count != new_tokens:
        raise SystemExit(f"{count} tokens came where {new_tokens} were asked for")
    return first - start, last - start, count


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--scheme", choices=["bf16", "int8", "int4"], default="bf16")
    parser.add_argument("--head", choices=["same", "bf16"], default="same")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--memory", type=float, default=0.6, help="gpu_memory_utilization")
    parser.add_argument("--attention-backend", default="TRITON_ATTN", help="or 'default'")
    parser.add_argument("--linear-backend", default="auto", help="auto, machete or marlin")
    options = parser.parse_args()

    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="peer-vllm-"))
    config = prepare_config(options.config, folder, options.scheme, options.head)

    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # apply_model takes a function
    import vllm
    from vllm import LLM

    fill_dummy_weights()
    llm = LLM(**engine_arguments(folder, options))
    ready = time.perf_counter() - began
    try:
        seen = check_head(llm, options)
    except Exception as error:
        seen = {"kernels": f"not read: {type(error).__name__}: {error}"}
    print(f"ready after {ready:.0f} s; {json.dumps(seen)}", file=sys.stderr, flush=True)

    chooser = random.Random(0)

    def prompt() -> list[int]:
        return [chooser.randrange(10, config["vocab_size"]) for _ in range(options.prompt_tokens)]

    engine = llm.llm_engine
    for i in range(2):
        time_one(engine, prompt(), min(64, options.new_tokens), f"warm-{i}")
    samples = []
    for i in range(options.repeats):
        to_first, total, count = time_one(engine, prompt(), options.new_tokens, f"run-{i}")
        samples.append(
            {
                "ttft_ms": round(to_first * 1000, 3),
                "total_s": round(total, 5),
                "decode_tps": round((count - 1) / (total - to_first), 2) if count > 1 else None,
                "tps": round(count / total, 2),
            }
        )

    def middle(key: str):
        values = [s[key] for s in samples if s[key] is not None]
        return round(statistics.median(values), 2) if values else None

    import torch

    print(
        json.dumps(
            {
                "name": "vllm",
                "version": vllm.__version__,
                "scheme": options.scheme,
                "head": options.head if options.scheme in BITS else "bf16",
                "decode_tps": middle("decode_tps"),
                "tps": middle("tps"),
                "ttft_ms": middle("ttft_ms"),
                "prompt_tokens": options.prompt_tokens,
                "new_tokens": options.new_tokens,
                "attention": options.attention_backend,
                **seen,
                "ready_s": round(ready, 1),
                "device": torch.cuda.get_device_name(0),
                "samples": samples,
            }
        ),
        flush=True,
    )
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no teardown of the engine: it can hang or print after the last line
