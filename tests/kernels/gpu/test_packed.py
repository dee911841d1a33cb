"""Packed weights come back as they were rounded, and fit every card that is meant."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slipstream.kernels.engine.compiled import _GPU_FLAGS
from slipstream.kernels.engine.gpu.packed import PackedLinear

SOURCE = Path(__file__).parents[3] / "kernels/engine/gpu"
SCHEMES = ["dense", "int8", "int4-g32", "int4-g64-sym", "int4-g128", "int4-channel"]
A10G_BLOCK_BYTES = 99 * 1024


def random_weight(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(rows, columns, generator=generator).bfloat16()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("rows", "interleave"), [(80, False), (75, False), (96, True)])
def test_packed_weights_come_back(scheme: str, rows: int, interleave: bool) -> None:
    weight = random_weight(rows, 256)
    packed = PackedLinear(weight, scheme, interleave=interleave)
    error = (packed.dense().float() - weight.float()).std() / weight.float().std()
    bounds = {"dense": 0.0, "int8": 0.01, "int4-g32": 0.09, "int4-g64-sym": 0.12}
    assert error <= bounds.get(scheme, 0.13)


def test_bytes_are_those_of_the_census() -> None:
    weight = random_weight(160, 256)
    per_weight = {name: PackedLinear(weight, name).nbytes / weight.numel() for name in SCHEMES}
    assert per_weight["dense"] == 2.0
    assert per_weight["int8"] == 1.0 + 4 / 256
    assert per_weight["int4-g32"] == 0.5 + 4 / 32
    assert per_weight["int4-g64-sym"] == 0.5 + 2 / 64
    assert per_weight["int4-g128"] == 0.5 + 4 / 128


def test_a_lane_holds_what_the_tensor_cores_want() -> None:
    """Lane (g, t): rows g and g + 8, and of each block of 16 columns 4t … 4t + 3."""
    weight = torch.arange(16 * 64).view(16, 64).remainder(251).bfloat16()
    lane = PackedLinear(weight, "dense").weights.view(1, 4, 32, 8)[0, 1, 3 * 4 + 2].tolist()
    g, c = 3, 16 + 8
    rows = ((g, c), (g, c + 1), (g + 8, c), (g + 8, c + 1))
    rows += ((g, c + 2), (g, c + 3), (g + 8, c + 2), (g + 8, c + 3))
    assert lane == [float(weight[at]) for at in rows]


def test_a_lane_holds_codes_as_the_tensor_cores_want_them() -> None:
    """Of a block of 32 columns 8t … 8t + 7; in int4, row g + 8 has the upper half-bytes."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (16, 128), generator=generator)
    codes[:, 0] = 127  # a scale of 1
    lane = PackedLinear(codes.float(), "int8").weights.view(1, 4, 32, 16)[0, 1, 3 * 4 + 2].tolist()
    g, c = 3, 32 + 16
    words = [codes[row, at : at + 4].tolist() for at in (c, c + 4) for row in (g, g + 8)]
    assert lane == [code for word in words for code in word]

    codes = torch.randint(0, 16, (16, 128), generator=generator)
    codes[:, 0], codes[:, 1] = 0, 15
    packed = PackedLinear(codes.float(), "int4-g128").weights
    lane = packed[0, 0, :1024].view(2, 32, 16)[1, 3 * 4 + 2].tolist()
    columns = [64 + block + 16 + i for block in (0, 32) for i in range(8)]
    assert lane == [int(codes[g, at] | codes[g + 8, at] << 4) for at in columns]


@pytest.mark.parametrize(
    ("columns", "scheme", "message"),
    [
        (80, "dense", "80 columns are no multiple of 32"),
        (192, "int4-g64", "192 columns are no multiple of 128"),
        (256, "int4-g48", "int4 groups of 48 columns"),
    ],
)
def test_what_does_not_fit_is_refused(columns: int, scheme: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedLinear(random_weight(16, columns), scheme)


@pytest.mark.parametrize("architecture", ["sm_86", "sm_90"])
def test_kernels_compile_for_every_card(architecture: str, tmp_path: Path) -> None:
    """With the macros that torch's builder defines; an A10G is sm_86."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here")
    macros = ["HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS"]
    command = ["nvcc", *_GPU_FLAGS, f"-arch={architecture}", "-Xptxas", "-v", "-c"]
    command += [f"-D__CUDA_NO_{macro}__" for macro in macros]
    command += [str(SOURCE / "gemv.cu"), "-o", str(tmp_path / "gemv.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    static = {"gemv_kernel": 0, "attention_kernel": 0}
    for entry in done.stderr.split("entry function ")[1:]:
        shared = re.search(r"(\d+) bytes smem", entry)
        for kernel in static:
            if kernel in entry.partition("\n")[0]:
                static[kernel] = max(static[kernel], int(shared[1]) if shared else 0)
    # The matrices' kernel also has a ring for each of eight warps and inputs, with five numbers for
    # 128 of them at most where they meet codes.
    source = (SOURCE / "inputs.cuh").read_text()
    stages = re.findall(r"DEPTH = .* \? (\d+) : (\d+);", (SOURCE / "stage.cuh").read_text())
    (dense, packed), most_scales = map(int, stages[0]), 4 * 16 * 4
    staged = int(re.findall(r"STAGED = (\d+) \* 1024;", source)[0]) * 1024
    kernel, numbers = static["gemv_kernel"], staged // 256 * 5 * 4
    assert kernel + 8 * dense * (1024 + 16) + staged <= A10G_BLOCK_BYTES
    assert kernel + 8 * packed * (1024 + most_scales) + staged + numbers <= A10G_BLOCK_BYTES
    # Attention: eight new keys and values (bf16) and eight queries (fp32) of 512 columns; weights;
    # what a split found, and of all splits what that weighs.
    room = (
        2 * 8 * 512 * 2 + 8 * 512 * 4 + 2 * 8 * 4 + 8 * 33 * 4 + 8 * 512 * 4 + 2 * 32 * 8 * 4 + 16
    )
    assert static["attention_kernel"] + room <= A10G_BLOCK_BYTES
