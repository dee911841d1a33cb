"""Time transformers at batch 1 on a config's sizes with random weights: static cache, compiled.

    python benchmarks/peers/transformers_static/decode.py --config DIR

`generate` with `cache_implementation="static"` compiles one step into CUDA graphs by itself. The
last line on standard output is one JSON object.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long-prompt", type=int, default=2048)
    options = parser.parse_args()
    config = AutoConfig.from_pretrained(options.config)
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def seconds(num_prompt: int, num_tokens: int, cache: str | None) -> float:
        prompt = torch.randint(10, config.vocab_size, (1, num_prompt), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompt,
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation=cache,
            )
        torch.cuda.synchronize()
        return time.perf_counter() - start

    length = options.prompt_tokens
    for num_tokens in (1, options.new_tokens, options.new_tokens):
        seconds(length, num_tokens, "static")  # compiles
    decode, whole, first = [], [], []
    for _ in range(options.repeats):
        to_first = seconds(length, 1, "static")
        total = seconds(length, options.new_tokens, "static")
        decode.append((options.new_tokens - 1) / (total - to_first))
        whole.append(options.new_tokens / total)
        first.append(1e3 * to_first)
    long = [1e3 * seconds(options.long_prompt, 1, None) for _ in range(options.repeats + 2)][2:]
    print(
        json.dumps(
            {
                "name": "transformers",
                "version": transformers.__version__,
                "scheme": "bf16",
                "decode_tps": statistics.median(decode),
                "tps": statistics.median(whole),
                "ttft_ms": statistics.median(first),
                "long_ttft_ms": statistics.median(long),
            }
        )
    )


if __name__ == "__main__":
    main()
