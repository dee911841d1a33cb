"""Turns prompts into token ids with the model's own chat template, in a process of its own.

python -m slipstream.evaluation.tokenize_prompts MODEL_DIR PROMPTS.jsonl OUT.json
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer


def main(model_dir: str, source: str, target: str) -> None:
    """Write a list of token lists, one per line of `source`."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokens = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": json.loads(line)["text"]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for line in Path(source).read_text().splitlines()
    ]
    Path(target).write_text(json.dumps(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
