"""What a step begins with, run by Triton's interpreter: the numbers need no GPU."""

import os
import subprocess
import sys

CHECK = """
import math, torch
from slipstream.kernels.engine.gpu.embedding import embed, per_layer_inputs
torch.manual_seed(0)
tokens = torch.tensor([3, 0, 6], dtype=torch.int32)
table = torch.randn(7, 80).bfloat16()
residual, halves = torch.zeros(3, 80), torch.zeros(3, 80, dtype=torch.bfloat16)
embed[(3, 2)](tokens, table, 8.0, residual, halves, HIDDEN=80, BLOCK=64, DEPENDENT=False)
expected = (table[tokens.long()].float() * 8.0).bfloat16()
assert torch.equal(halves, expected) and torch.equal(residual, expected.float())

layers, size = 4, 24
own, projected = torch.randn(7, layers * size).bfloat16(), torch.randn(3, layers * size)
weight, out = torch.rand(size), torch.zeros(3, layers * size)
per_layer_inputs[(3, layers)](
    tokens, own, projected, weight, out, 5.0, 0.3, 1e-6,
    LAYERS=layers, SIZE=size, BLOCK=32, DEPENDENT=False,
)
x = (projected * 0.3).view(3, layers, size)
normed = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight
expected = (normed + own[tokens.long()].float().view(3, layers, size) * 5.0) / math.sqrt(2)
torch.testing.assert_close(out.view(3, layers, size), expected, atol=1e-5, rtol=1e-5)
"""


def test_embeddings_and_per_layer_inputs() -> None:
    """In a process of its own: Triton decides on import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
