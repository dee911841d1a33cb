"""A challenge that is through in seconds, with real engines on a random model."""

from pathlib import Path

TINY = """
name = "tiny"
title = "a random model of three layers"
model = "random:tiny-llama"
device = "cpu"
baseline = "transformers-fp32"
[workload]
prompts = "random-ids"
num_tokens = 8
num_prompts = 4
prompt_tokens = 8
max_context = 64
[quality]
documents = 4
continuation_tokens = 8
[acceptance]
screen_pairs = 2
test_pairs = 4
confirm_pairs = 4
noise_pairs = 4
baseline_pairs = 3
audit_blocks = 3
[budget]
minutes = 5
experiments = 3
"""


def write_tiny(folder: Path) -> Path:
    """Write the challenge's file; return its path."""
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return path
