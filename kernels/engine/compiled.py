"""Building C++ at first use, with torch's own extension builder.

Into a private folder of this process: a cache shared between variants would let one of them leave
code for the next.
"""

import ctypes
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

_FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math"]


SOURCES = Path(__file__).resolve().parent


@cache
def build(name: str, source: Path) -> ctypes.CDLL:
    """Compile `source` and return its functions; takes a few seconds, once a process.

    Raises:
        ValueError: no C++ compiler or no ninja, or the compiler refused the source.
    """
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
                extra_cuda_cflags=["-O3", "-std=c++17"],
                build_directory=folder,
                is_python_module=False,
            )
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if "error:" in line]
            reason = (lines or str(error).splitlines() or ["no message"])[0].strip()
            raise ValueError(f"{source.name}: {compiler} says {reason}") from error
        # Built again in one process, it gets another name.
        (built,) = Path(folder).glob("*.so")
        return ctypes.CDLL(str(built))  # stays mapped when the folder goes
