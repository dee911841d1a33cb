"""The kind of machine that measures, which need not be the one where the loop runs."""

from dataclasses import dataclass

from . import sandbox
from .hardware import Hardware, can_compile, detect_hardware


@dataclass(frozen=True)
class Site:
    """The machine where measurements happen, as it describes itself.

    Attributes:
        has_compiler: compiled kernels for the challenge's device can be built there.
        no_sandbox: why engines run there without a sandbox; empty if they run in one.
    """

    hardware: Hardware
    has_compiler: bool
    no_sandbox: str


def look_around(device: str) -> Site:
    """Describe the machine that this process runs on, for a challenge's device."""
    return Site(detect_hardware(), can_compile(device), sandbox.problem())
