"""The seccomp filter of the sandbox, as the BPF program that bubblewrap loads.

Refused with EPERM: looking into or steering other processes, mounting, loading code into the
kernel, new namespaces, changing clocks or scheduling. `clone3` hides its flags behind a pointer
that a filter can't read, so it answers ENOSYS and the C library falls back to `clone`, whose flags
are checked. A process of another architecture than this one's is killed.

Numbers are from the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h); the instructions are in linux/filter.h and linux/seccomp.h.
"""

import errno
import platform
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class _Architecture:
    audit: int  # AUDIT_ARCH_… in linux/audit.h
    clone: int
    clone3: int
    refused: dict[str, int]


# From 424 on all architectures share their numbers.
_SHARED = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "process_mrelease": 448,
    "open_tree_attr": 467,
}
_X86_64 = {
    "ptrace": 101,
    "sched_setparam": 142,
    "sched_setscheduler": 144,
    "pivot_root": 155,
    "adjtimex": 159,
    "chroot": 161,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "timer_create": 222,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "ioprio_set": 251,
    "migrate_pages": 256,
    "unshare": 272,
    "move_pages": 279,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "clock_adjtime": 305,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "sched_setattr": 314,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
}
_AARCH64 = {
    "ptrace": 117,
    "sched_setparam": 118,
    "sched_setscheduler": 119,
    "pivot_root": 41,
    "adjtimex": 171,
    "chroot": 51,
    "acct": 89,
    "settimeofday": 170,
    "mount": 40,
    "umount2": 39,
    "swapon": 224,
    "swapoff": 225,
    "reboot": 142,
    "init_module": 105,
    "delete_module": 106,
    "quotactl": 60,
    "timer_create": 107,
    "clock_settime": 112,
    "kexec_load": 104,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "ioprio_set": 30,
    "migrate_pages": 238,
    "unshare": 97,
    "move_pages": 239,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "name_to_handle_at": 264,
    "open_by_handle_at": 265,
    "clock_adjtime": 266,
    "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "finit_module": 273,
    "sched_setattr": 274,
    "kexec_file_load": 294,
    "bpf": 280,
    "userfaultfd": 282,
}
_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 56, 435, _X86_64 | _SHARED),
    "aarch64": _Architecture(0xC00000B7, 220, 435, _AARCH64 | _SHARED),
}

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Time, cgroup, UTS, IPC, user, PID and network namespaces, and the mount one.
_NEW_NAMESPACES = 0x7E020080
_X32_BIT = 0x40000000  # x86's third way of calling, with numbers of its own


def refused_names() -> list[str]:
    """Return the names of the system calls that are refused, for people."""
    return sorted({*_X86_64, *_SHARED, "clone with new namespaces", "clone3"})


def seccomp_program(machine: str = "") -> bytes:
    """Return the filter for this machine, or for `machine` (as `uname -m` names it).

    Raises:
        KeyError: no table for that architecture.
    """
    arch = _ARCHITECTURES[machine or platform.machine()]
    refused = sorted(arch.refused.values())
    # Every test jumps to one of four returns at the end; distances count from the next instruction.
    body: list[tuple[int, int, str, str]] = [
        (_LOAD, _ARCH, "", ""),
        (_JUMP_EQUAL, arch.audit, "", "kill"),
        (_LOAD, _NUMBER, "", ""),
        (_JUMP_AT_LEAST, _X32_BIT, "kill", ""),
        (_JUMP_EQUAL, arch.clone3, "nosys", ""),
        *((_JUMP_EQUAL, number, "perm", "") for number in refused),
        (_JUMP_EQUAL, arch.clone, "", "allow"),
        (_LOAD, _FIRST_ARGUMENT, "", ""),
        (_JUMP_SET, _NEW_NAMESPACES, "perm", "allow"),
    ]
    returns = {
        "allow": _ALLOW,
        "perm": _ERRNO | errno.EPERM,
        "nosys": _ERRNO | errno.ENOSYS,
        "kill": _KILL,
    }
    target = {name: len(body) + index for index, name in enumerate(returns)}
    program = b""
    for index, (code, value, if_true, if_false) in enumerate(body):
        jumps = [target[name] - index - 1 if name else 0 for name in (if_true, if_false)]
        program += struct.pack("<HBBI", code, *jumps, value)
    for value in returns.values():
        program += struct.pack("<HBBI", _RETURN, 0, 0, value)
    return program
