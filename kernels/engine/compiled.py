"""Building C++ at first use, with torch's own extension builder.

Into a private folder of this process: a cache that variants could write to would let one of them
leave code for the next. What ships, unchanged, may have been built beforehand by somebody trusted
(`python -m slipstream.kernels.engine.compiled cpu FOLDER`); `SLIPSTREAM_KERNELS` says where.
"""

import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math"]
_GPU_FLAGS = ["-O3", "-std=c++17", "--split-compile=0"]  # on all cores
_BUILT = "SLIPSTREAM_KERNELS"

SOURCES = Path(__file__).resolve().parent
# What each device's kernels are called, and where they are.
KERNELS = {
    "cpu": ("slipstream_step", SOURCES / "step.cpp"),
    "cuda": ("slipstream_gemv", SOURCES / "gpu" / "gemv.cu"),
}


@cache
def build(device: str) -> ctypes.CDLL:
    """Return the functions of a device's kernels, "cpu" or "cuda".

    Compiling them takes seconds, once a process, where nobody has done it before.

    Raises:
        ValueError: no C++ compiler or no ninja, or the compiler refused the source.
    """
    name, source = KERNELS[device]
    if folder := os.environ.get(_BUILT):
        built = Path(folder) / library_name(name, source)
        if built.is_file():
            return ctypes.CDLL(str(built))
    with _compiled(name, source) as built:
        return ctypes.CDLL(str(built))  # stays mapped when the folder goes


def library_name(name: str, source: Path) -> str:
    """Return what a built source is called: by its content, and that of all that lies beside it."""
    digest = hashlib.sha256()
    for path in sorted(source.parent.iterdir()):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            digest.update(f"{path.name}|{path.stat().st_size}|".encode() + path.read_bytes())
    digest.update(repr((_FLAGS, _GPU_FLAGS)).encode())
    return f"{name}-{digest.hexdigest()[:16]}.so"


@contextmanager
def _compiled(name: str, source: Path) -> Iterator[Path]:
    """Compile `source`; give the library, which goes away afterwards."""
    # ninja comes as a package: its program lies beside this Python's.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    compiler = os.environ.get("CXX", "c++")
    tools = {compiler: "apt-get install g++", "ninja": "pip install ninja"}
    if source.suffix == ".cu":
        compiler = "nvcc"
        tools[compiler] = "install the CUDA toolkit and put its bin folder on PATH"
    for tool, package in tools.items():
        if shutil.which(tool) is None:
            raise ValueError(f"{source.name}: {tool} not found, which builds it: {package}")
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory() as folder:
        try:
            cpp_extension.load(
                name,
                [str(source)],
                extra_cflags=_FLAGS,
                extra_cuda_cflags=_GPU_FLAGS,
                build_directory=folder,
                is_python_module=False,
            )
        except RuntimeError as error:
            lines = [
                line for line in str(error).splitlines() if "error:" in line or "fatal" in line
            ]
            reason = (lines or str(error).splitlines() or ["no message"])[0].strip()
            raise ValueError(f"{source.name}: {compiler} says {reason}") from error
        # Built again in one process, it gets another name.
        (built,) = Path(folder).glob("*.so")
        yield built


def main() -> None:
    """Build a device's kernels into a folder, for engines that are started later."""
    device, folder = sys.argv[1:]
    name, source = KERNELS[device]
    try:
        with _compiled(name, source) as built:
            shutil.copy(built, Path(folder) / library_name(name, source))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
