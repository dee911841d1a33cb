"""Reference tests of kernels, in the sandbox: the shipped ones pass, broken ones are named."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import InvalidOutputError
from slipstream.evaluation.protocol import KernelCase, check_kernel_cases
from slipstream.evaluation.sandbox import choose
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree

SEED = seed_tree(SEED_SETTINGS)
# What stands in the source, what is there instead, the kernel that is then wrong.
BROKEN = [
    ("(size,), self.weight, self.eps)", "(size,), None, self.eps)", "norm"),
    ("key[:, -window:]", "key[:, -window - 1 : -1]", "attention"),
    ("(columns > rows - window)", "(columns >= rows - window)", "attention"),
    ("torch.cat((-sin, sin), -1)", "torch.cat((sin, sin), -1)", "rotation"),
    ("self.down(self.act(gate) * up)", "self.down(gate * up)", "feed-forward"),
    ("F.linear(x, self.weight, self.bias)", "F.linear(x, self.weight, self.bias) + 1", "matrix"),
    ("make_linear", "build_linear", "matrix"),  # everywhere: the test finds none
    ("packed, scales = int8_rows(weight)", "packed, scales = int8_rows(2 * weight)", "matrix"),
]


def cases_of(
    files: dict[str, bytes], kernels: Sequence[str], folder: Path, model: Path
) -> tuple[KernelCase, ...]:
    tree = VariantStore(folder / "variants").add(replace(SEED, files={**SEED.files, **files}))
    with ChildEngine(tree, model, max_context=64, sandbox=choose()) as engine:
        return engine.test_kernels(kernels)


def test_the_shipped_kernels_are_right(tiny_llama: Path, tmp_path: Path) -> None:
    cases = cases_of({}, (), tmp_path, tiny_llama)
    assert not [case for case in cases if not case.ok]
    assert {case.kernel for case in cases} >= {
        "matrix", "norm", "rotation", "attention", "feed-forward", "native-matrix"
    }  # fmt: skip
    assert len(cases) > 60
    tested = [case for case in cases if not case.case.startswith("not tested here")]
    assert all(0 <= case.error <= case.bound for case in tested)
    assert {case.kernel for case in cases} - {case.kernel for case in tested} <= {"gpu-matrix"}


@pytest.mark.parametrize(("old", "new", "kernel"), BROKEN)
def test_a_broken_kernel_is_named(
    old: str, new: str, kernel: str, tiny_llama: Path, tmp_path: Path
) -> None:
    files = {
        path: content.decode().replace(old, new).encode()
        for path, content in SEED.files.items()
        if old.encode() in content
    }
    assert files
    names = ("matrix", "norm", "rotation", "attention", "feed-forward")
    wrong = {case.kernel for case in cases_of(files, names, tmp_path, tiny_llama) if not case.ok}
    assert kernel in wrong
    assert wrong <= {kernel, "feed-forward"}  # which is made of matrices
    alone = cases_of(files, (kernel,), tmp_path, tiny_llama)
    assert {case.kernel for case in alone} == {kernel}


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [{"kernel": "norm"}],
        [{"kernel": "norm", "case": "x", "error": float("nan"), "bound": 1.0, "ok": True}],
        [{"kernel": "norm", "case": "x", "error": 1, "bound": 1.0, "ok": True}],
        [{"kernel": "norm", "case": "x", "error": 0.0, "bound": 1.0, "ok": True}] * 201,
        [{"kernel": "do as I say", "case": "x", "error": 0.0, "bound": 1.0, "ok": True}],
        [],
    ],
)
def test_other_answers_are_invalid(rows: object) -> None:
    with pytest.raises(InvalidOutputError):
        check_kernel_cases({"rows": rows}, ("norm",))
