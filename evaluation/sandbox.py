"""The sandbox of an engine's process: bubblewrap, with an allow-list of what it may see.

An engine sees the system's programs and libraries, this Python with its packages, its own tree and
the model, all read-only; a private /tmp of limited size; no network, no other process, no keys.
Left out on purpose: slipstream's own package (it holds prompts), homes, memory, caches. Without a
sandbox only the shipped engine's own source runs, unless the user says `--unsafe-local`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from slipstream.kernels.variants import MANIFEST

from .home import data_dir
from .syscalls import seccomp_program

_HERE = Path(__file__).resolve().parent
_INSIDE = _HERE / "inside"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
# OpenMP and oneDNN read the topology here to choose their threads.
_TOPOLOGY = ("/sys/devices/system/cpu", "/sys/devices/system/node")
_GPU_FILES = ("/proc/driver/nvidia", "/sys/bus/pci", "/sys/devices/pci0000:00", "/etc/OpenCL")
_GPU_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_PACKAGE_MANAGERS = {
    "apt-get": "apt-get install bubblewrap",
    "dnf": "dnf install bubblewrap",
    "pacman": "pacman -S bubblewrap",
    "zypper": "zypper install bubblewrap",
}


def _memory_limit() -> int:
    return int(0.7 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True)
class Limits:
    """What an engine's processes may use.

    Attributes:
        memory_bytes: private memory of each process, and resident memory of all.
        file_bytes: size of any file that they write, their log included.
        scratch_bytes: size of /tmp, and of /dev/shm.
        num_tasks: processes and threads.
        num_files: open files per process.
    """

    memory_bytes: int = field(default_factory=_memory_limit)
    file_bytes: int = 256 << 20
    scratch_bytes: int = 1 << 30
    num_tasks: int = 512
    num_files: int = 1024

    def rlimits(self) -> dict[str, int]:
        """Return the limits that the kernel enforces by process, by their RLIMIT names."""
        return {
            "DATA": self.memory_bytes,
            "FSIZE": self.file_bytes,
            "NPROC": self.num_tasks,
            "NOFILE": self.num_files,
            "CORE": 0,
        }


@dataclass(frozen=True)
class Launch:
    """How to start an engine's process, and by which paths it knows its tree and model.

    Attributes:
        scratch: a folder that was made for it, to be removed when it has ended; None in the
            sandbox, where it goes away by itself.
    """

    command: list[str]
    tree: str
    model: str
    environment: dict[str, str]
    scratch: Path | None = None


class Sandbox:
    """Bubblewrap around every process that it launches."""

    name = "bubblewrap"

    def __init__(self, *, gpu: bool = False) -> None:
        self._gpu = gpu

    def launch(
        self,
        tree: Path,
        model: Path,
        descriptors: Sequence[int],
        limits: Limits,
        programs: Path | None = None,
        kernels: Path | None = None,
    ) -> Launch:
        """Return how to start the keeper of an engine in the sandbox.

        Args:
            descriptors: socket, control socket and an open file with the seccomp program; the
                process inherits them.
            programs: the `bin` folder of an environment that it may see, too.
            kernels: where those that ship were built.
        """
        *sockets, seccomp_fd = descriptors
        arguments = [str(_bwrap()), *self._mounts(limits)]
        arguments += ["--ro-bind", str(tree), "/variant", *_model_mounts(model)]
        if programs is not None:
            arguments += ["--ro-bind", str(programs.parent), str(programs.parent)]
        if kernels is not None:
            arguments += ["--ro-bind", str(kernels), "/kernels"]
        arguments += ["--ro-bind", str(_INSIDE), "/inside", "--remount-ro", "/"]
        arguments += [
            *("--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"),
            *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
            *("--unshare-cgroup-try", "--hostname", "engine", "--as-pid-1", "--new-session"),
            *("--cap-drop", "ALL", "--seccomp", str(seccomp_fd), "--chdir", "/tmp"),
            "--",
        ]
        arguments += keeper_command("/inside", sockets, limits)
        given = environment("/tmp", gpu=self._gpu, kernels="/kernels" if kernels else "")
        return Launch(arguments, "/variant", "/model", given)

    def _mounts(self, limits: Limits) -> list[str]:
        size = str(limits.scratch_bytes)
        arguments: list[str] = []
        for name in _SYSTEM:
            if Path(name).is_symlink():
                arguments += ["--symlink", str(Path(name).readlink()), name]
            elif Path(name).exists():
                arguments += ["--ro-bind", name, name]
        arguments += ["--size", size, "--tmpfs", "/tmp"]  # before what may lie in it
        for path in (*_python_folders(), *(_toolkit_folders() if self._gpu else ())):
            arguments += ["--ro-bind", str(path), str(path)]
        for path in _own_packages():  # prompts are in there
            arguments += ["--tmpfs", str(path), "--remount-ro", str(path)]
        arguments += ["--proc", "/proc", "--dev", "/dev"]
        if self._gpu:
            for device in sorted(Path("/dev").glob("nvidia*")):
                arguments += ["--dev-bind", str(device), str(device)]
        arguments += ["--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        for name in (*_TOPOLOGY, *(_GPU_FILES if self._gpu else ())):
            arguments += ["--ro-bind-try", name, name]
        return arguments


def _model_mounts(model: Path) -> list[str]:
    """Mount a model's folder; where files in it are links (a Hub's snapshot), what they lead to."""
    files = [path for path in sorted(model.rglob("*")) if path.is_file()]
    if not any(path.is_symlink() for path in files):
        return ["--ro-bind", str(model), "/model"]
    arguments: list[str] = []
    for path in files:
        arguments += ["--ro-bind", str(path.resolve()), f"/model/{path.relative_to(model)}"]
    return arguments


class NoSandbox:
    """Starts engines as plain child processes, for source that is trusted anyway."""

    name = "none"

    def __init__(self, *, gpu: bool = False) -> None:
        self._gpu = gpu

    def launch(
        self,
        tree: Path,
        model: Path,
        descriptors: Sequence[int],
        limits: Limits,
        programs: Path | None = None,  # noqa: ARG002  (it sees everything)
        kernels: Path | None = None,
    ) -> Launch:
        """Return how to start the keeper of an engine; arguments are those of `Sandbox.launch`."""
        scratch = Path(tempfile.mkdtemp(prefix="slipstream-child-"))
        if (tree / MANIFEST).is_file():  # a server may write into its folder
            tree = Path(shutil.copytree(tree, scratch / "variant"))
        command = keeper_command(str(_INSIDE), descriptors[:2], limits)
        given = environment(str(scratch), gpu=self._gpu, kernels=str(kernels or ""))
        return Launch(command, str(tree), str(model), given, scratch)


AnySandbox = Sandbox | NoSandbox


def keeper_command(inside: str, descriptors: Sequence[int], limits: Limits) -> list[str]:
    """Return the command line of `keeper.py`, which starts the worker."""
    rlimits = json.dumps(limits.rlimits())
    return [sys.executable, "-I", f"{inside}/keeper.py", *map(str, descriptors), rlimits]


def environment(home: str, *, gpu: bool = False, kernels: str = "") -> dict[str, str]:
    """Return an engine's whole environment: no keys, and of the parent's nothing but the GPU's.

    Args:
        gpu: tell where the driver's libraries are and which GPU is ours; otherwise show none.
        kernels: where the engine finds those that ship, if anywhere.
    """
    given = {"CUDA_VISIBLE_DEVICES": ""}
    path = "/usr/local/bin:/usr/bin:/bin"
    if gpu:
        given = {name: os.environ[name] for name in _GPU_VARIABLES if name in os.environ}
        if nvcc := shutil.which("nvcc"):  # engines build their kernels with it
            path = f"{Path(nvcc).parent}:{path}"
    if kernels:
        given["SLIPSTREAM_KERNELS"] = kernels
    return given | {
        "PATH": path,
        "HOME": home,
        "TMPDIR": home,
        "USER": "engine",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # a tree is named by its content: leave no litter
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def choose(*, gpu: bool = False) -> AnySandbox:
    """Return the sandbox if it starts here; otherwise no sandbox."""
    return NoSandbox(gpu=gpu) if problem() else Sandbox(gpu=gpu)


@cache
def problem() -> str:
    """Return why the sandbox doesn't start here and what to do; empty if it does."""
    if shutil.which("bwrap") is None:
        found = (text for tool, text in _PACKAGE_MANAGERS.items() if shutil.which(tool))
        return f"bubblewrap is not installed ({next(found, 'install the package bubblewrap')})"
    try:
        seccomp_program()
    except KeyError:
        return f"no seccomp table for {platform.machine()}"
    with tempfile.TemporaryDirectory() as empty, seccomp_file() as seccomp:
        folder = Path(empty)
        launch = Sandbox().launch(folder, folder, (0, 0, seccomp), Limits())
        command = launch.command[: launch.command.index("--") + 1]
        done = subprocess.run(
            [*command, "/bin/true"],
            pass_fds=[seccomp],
            env=launch.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return ""
    reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    hint = ""
    if "ermi" in reason:  # permission denied, operation not permitted
        hint = (
            "; user namespaces may be switched off (sysctl kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns)"
        )
    return f"bubblewrap doesn't start: {reason}{hint}"


@contextmanager
def seccomp_file() -> Iterator[int]:
    """Give the descriptor of an open file that holds the seccomp program."""
    descriptor = os.memfd_create("seccomp")
    try:
        os.write(descriptor, seccomp_program())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _bwrap() -> Path:
    return Path(shutil.which("bwrap") or "bwrap")


def _python_folders() -> list[Path]:
    """Return where this Python lives, /usr aside: environment, base installation, packages."""
    paths = {
        sys.prefix,
        sys.base_prefix,
        sysconfig.get_path("platlib"),
        sysconfig.get_path("purelib"),
    }
    paths.add(str(Path(sys.executable).resolve().parent.parent))
    found: list[Path] = []
    for path in sorted({Path(path) for path in paths}):
        if path.is_dir() and not any(path.is_relative_to(p) for p in (*found, Path("/usr"))):
            found.append(path)
    return found


def _toolkit_folders() -> list[Path]:
    """Return where the CUDA toolkit lies, if it isn't in /usr: as it is named, and really.

    A folder that holds more than a toolkit is not shown, nor one that is shown anyway.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    shown = [Path("/usr"), *_python_folders()]
    hidden = [data_dir().resolve(), Path.home().resolve(), _HERE.resolve()]
    return [
        root
        for root in sorted({Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent})
        if (root / "nvvm").is_dir()
        and not any(root.is_relative_to(path) for path in shown)
        and not any(path.is_relative_to(root.resolve()) for path in hidden)
    ]


def _own_packages() -> list[Path]:
    """Return where slipstream itself would be visible in what the sandbox mounts."""
    installed = {Path(sysconfig.get_path(kind)) / "slipstream" for kind in ("purelib", "platlib")}
    visible = [*_python_folders(), Path("/usr")]
    candidates = [path for path in (*sorted(installed), _HERE) if path.is_dir()]
    return [path for path in candidates if any(path.is_relative_to(v) for v in visible)]
