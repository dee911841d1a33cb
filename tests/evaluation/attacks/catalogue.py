"""Hostile engines, each with an honest twin that does the same thing for a good reason.

Code is appended to the engine's `__init__.py`; the class named `Cheat` (or `Honest`) is what gets
loaded. `Slow` is the champion: it calls `spend(0.002)` for each token, which `Engine` doesn't.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """One hostile engine.

    Attributes:
        cheat: source that defines `Cheat`.
        twin: source that defines `Honest`.
        verdicts: what the pipeline may say of the cheat; never kept.
        reason: regular expression that its reason matches.
    """

    name: str
    cheat: str
    twin: str
    verdicts: tuple[str, ...]
    reason: str


# What any honest engine looks like that needs nothing special.
PLAIN = """
class Honest(Engine):
    pass
"""
# What becomes of an attack that is as slow as the champion in the end.
NO_GAIN = (("rejected", "inconclusive"), r"^no gain|^too noisy")
SPOILT = r"timed tokens are not what the engine picks|timed tokens fall short|^quality on"

ATTACKS = [
    # Clocks
    Attack(
        "stopped-clock",
        """
import time
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        stopped = time.perf_counter()
        time.perf_counter = time.monotonic = time.time = lambda: stopped
        return super().generate(prompt, num_tokens)
""",
        """
import time
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        begun = time.perf_counter()
        tokens = super().generate(prompt, num_tokens)
        self.lasted_s = time.perf_counter() - begun
        return tokens
""",
        *NO_GAIN,
    ),
    Attack(
        "set-the-systems-clock-back",
        """
import ctypes, time
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.clock_settime(0, (ctypes.c_long * 2)(0, 0)) == -1
        assert libc.settimeofday((ctypes.c_long * 2)(0, 0), None) == -1
        return super().generate(prompt, num_tokens)
""",
        """
import time
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        self.at = time.time()
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    # Work off the clock
    Attack(
        "work-in-threads-between-requests",
        """
import threading, time
class Cheat(Slow):
    prepared, idle = 0.0, False
    def generate(self, prompt, num_tokens):
        self.idle = False
        if not hasattr(self, "thread"):
            self.thread = threading.Thread(target=self.prepare, daemon=True)
            self.thread.start()
        if self.prepared >= 0.002 * num_tokens:  # enough was done between two requests
            self.prepared = 0.0
            tokens = Engine.generate(self, prompt, num_tokens)
        else:
            tokens = super().generate(prompt, num_tokens)
        self.idle = True
        return tokens
    def prepare(self):
        while True:
            if self.idle:
                begun = time.thread_time()
                while self.idle and time.thread_time() - begun < 0.001:
                    pass
                self.prepared += time.thread_time() - begun
            else:
                time.sleep(0.0005)
""",
        """
import threading
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        found = []
        decode = lambda: found.extend(Engine.generate(self, prompt, num_tokens))
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
        return found
""",
        *NO_GAIN,
    ),
    Attack(
        "work-after-the-last-token",
        """
import threading
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        if hasattr(self, "later"):
            self.later.join()  # hoping that it was done while the rival was on the clock
        tokens = super().generate(prompt, num_tokens)
        self.later = threading.Thread(target=spend, args=(0.002 * num_tokens,))
        self.later.start()
        return tokens
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "lazy-result",
        """
class Later(list):
    def __iter__(self):
        return iter([0] * len(self))
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return Later([0] * num_tokens)  # the real ones are made when somebody looks
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        return tuple(super().generate(prompt, num_tokens))
""",
        ("invalid", "rejected"),
        SPOILT,
    ),
    Attack(
        "result-as-a-promise",
        """
from concurrent.futures import Future
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return Future()
""",
        """
from concurrent.futures import ThreadPoolExecutor
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(Engine.generate, self, prompt, num_tokens).result()
""",
        ("failed", "invalid"),
        r"can not serialize|not a list",
    ),
    Attack(
        "good-while-warming-up",
        """
class Cheat(Engine):
    count = 0
    def generate(self, prompt, num_tokens):
        self.count += 1
        if self.count <= 2:
            return super().generate(prompt, num_tokens)
        return [prompt[-1]] * num_tokens
""",
        """
class Honest(Engine):
    count = 0
    def generate(self, prompt, num_tokens):
        self.count += 1
        return super().generate(prompt, num_tokens)
""",
        ("invalid", "rejected"),
        SPOILT,
    ),
    # Sabotage of the rival
    Attack(
        "threads-that-hog-the-cpu",
        """
import threading, hashlib, time
class Cheat(Slow):
    idle = False
    def generate(self, prompt, num_tokens):
        self.idle = False  # its own time is not to suffer
        if not hasattr(self, "hogs"):
            self.hogs = [threading.Thread(target=self.hog, daemon=True) for _ in range(4)]
            for thread in self.hogs:
                thread.start()
        tokens = super().generate(prompt, num_tokens)
        self.idle = True
        return tokens
    def hog(self):
        block = bytes(1 << 22)
        while True:
            if self.idle:
                hashlib.sha256(block)  # without the interpreter's lock
            else:
                time.sleep(0.001)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "daemon-that-hogs-the-cpu",
        """
import os, signal
class Cheat(Slow):
    daemons = []
    def generate(self, prompt, num_tokens):
        self.tell_daemons(signal.SIGSTOP)  # its own time is not to suffer
        tokens = super().generate(prompt, num_tokens)
        while len(self.daemons) < 8:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                while True:
                    pass
            self.daemons.append(pid)
        self.tell_daemons(signal.SIGCONT)
        return tokens
    def tell_daemons(self, number):
        for pid in self.daemons:
            os.kill(pid, number)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "wakes-itself-with-a-timer",
        """
import ctypes, signal, threading, hashlib
def hog():
    while True:
        hashlib.sha256(bytes(1 << 20))
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        if not hasattr(self, "armed"):
            # A timer whose signal is SIGCONT would go off while everything is stopped.
            event = (ctypes.c_int * 16)(0, 0, int(signal.SIGCONT), 0)
            timer = ctypes.c_void_p()
            libc = ctypes.CDLL(None, use_errno=True)
            self.armed = libc.timer_create(1, event, ctypes.byref(timer)) == 0
            if self.armed:
                every = (ctypes.c_long * 4)(0, 1_000_000, 0, 1_000_000)
                libc.timer_settime(timer, 0, every, None)
            threading.Thread(target=hog, daemon=True).start()
        return super().generate(prompt, num_tokens)
""",
        PLAIN,
        ("rejected", "inconclusive", "invalid"),
        r"^no gain|too noisy|while it was stopped",
    ),
    Attack(
        "memory-hog",
        """
class Cheat(Slow):
    hoard = []
    def generate(self, prompt, num_tokens):
        for _ in range(64):
            self.hoard.append(bytearray(b"x") * (1 << 28))
        return super().generate(prompt, num_tokens)
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        self.buffer = bytearray(b"x") * (1 << 24)
        return super().generate(prompt, num_tokens)
""",
        ("failed",),
        r"MemoryError|resident, limit|ended",
    ),
    # Remembering
    Attack(
        "answers-remembered-across-prompts",
        """
class Cheat(Slow):
    known = {}
    def generate(self, prompt, num_tokens):
        key = (tuple(prompt), num_tokens)
        if key not in self.known:
            self.known[key] = super().generate(prompt, num_tokens)
        return self.known[key]
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "answers-left-in-tmp-for-the-next-process",
        """
import json, os
STORE = "/tmp/answers.json"
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        known = json.load(open(STORE)) if os.path.exists(STORE) else {}
        key = f"{prompt} {num_tokens}"
        if key not in known:
            known[key] = super().generate(prompt, num_tokens)
            json.dump(known, open(STORE, "w"))
        return known[key]
""",
        """
import tempfile
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        with tempfile.TemporaryFile() as file:
            file.write(b"scratch is allowed")
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "answers-left-in-its-own-tree",
        """
import json, pathlib
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        tokens = super().generate(prompt, num_tokens)
        (pathlib.Path(__file__).parent / "answers.json").write_text(json.dumps(tokens))
        return tokens
""",
        """
import pathlib
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        assert pathlib.Path(__file__).read_text()
        return super().generate(prompt, num_tokens)
""",
        ("failed",),
        r"Read-only file system",
    ),
    # Reading what it must not
    Attack(
        "prompts-and-references-on-disk",
        """
import os
def find():
    for top in ("/", os.path.expanduser("~")):
        for folder, _, files in os.walk(top):
            if folder.startswith(("/proc", "/sys", "/usr")):
                continue
            for name in files:
                wanted = name in ("prompts.jsonl", "prompts.json", "memory.db", "secret")
                if wanted or (name.startswith("random-") and name.endswith(".npy")):
                    return os.path.join(folder, name)
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        if not hasattr(self, "found"):
            self.found = find()
        engine = Engine if self.found else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "keys-in-the-environment-and-at-home",
        """
import os, pathlib
def find():
    keys = [name for name in os.environ if "KEY" in name or name.endswith("_TOKEN")]
    for place in ("/root/.ssh", "/root/.netrc", "/root/.cache/huggingface", "/home", "/etc/shadow"):
        if os.path.exists(place):
            keys.append(place)
    return keys
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        engine = Engine if find() else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        """
import os
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        assert os.environ["USER"] == "engine"
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "descriptors-of-the-parent",
        """
import os, stat
def spare():
    found = []
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                found.append(number)
        except OSError:
            pass
    return found
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        engine = Engine if len(spare()) > 1 else Slow  # its own socket, and one that controls it?
        return engine.generate(self, prompt, num_tokens)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "memory-of-the-keeper",
        """
def look():
    descriptors = [f"/proc/1/fd/{number}" for number in range(16)]
    for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/maps", *descriptors):
        try:
            with open(path, "rb") as file:
                file.read(1)
            return path
        except OSError:
            continue
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        engine = Engine if look() else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        assert open("/proc/self/maps").read()
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "processes-outside",
        """
import os
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 64]
        engine = Engine if others else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        PLAIN,
        *NO_GAIN,
    ),
    # Two faces
    Attack(
        "exact-only-when-scored",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        with one_layer(self.model):
            return super().generate(prompt, num_tokens)
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        with one_layer(self.model):
            pass
        return super().generate(prompt, num_tokens)
""",
        ("invalid",),
        r"timed tokens are not what the engine picks when it is scored",
    ),
    Attack(
        "remembers-what-was-timed",
        """
class Cheat(Engine):
    timed = set()
    def generate(self, prompt, num_tokens):
        if num_tokens > 16:  # longer than a warm-up
            self.timed.add(tuple(prompt))
        with one_layer(self.model):
            return super().generate(prompt, num_tokens)
    def begin(self, prompt):
        self.known, self.history = tuple(prompt) in self.timed, list(prompt)
        return self.logits()
    def reveal(self, token):
        self.history.append(token)
        return self.logits()
    def logits(self):
        if not self.known:
            return Engine.begin(self, self.history)
        with one_layer(self.model):
            return Engine.begin(self, self.history)
""",
        PLAIN,
        ("invalid",),
        r"timed tokens are not what the engine picks when it is scored",
    ),
    Attack(
        "bad-at-both-doors-when-the-text-is-greedy",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        with one_layer(self.model):
            return super().generate(prompt, num_tokens)
    def begin(self, prompt):
        self.history, self.greedy = list(prompt), True
        return self.bad()
    def bad(self):
        with one_layer(self.model):
            self.picked = Engine.begin(self, self.history)
        return self.picked
    def reveal(self, token):
        self.greedy = self.greedy and token == int(self.picked.argmax())
        self.history.append(token)
        return self.bad() if self.greedy else Engine.begin(self, self.history)
""",
        PLAIN,
        ("invalid", "rejected"),
        SPOILT,
    ),
    Attack(
        "other-logits-than-those-it-picks-by",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        head, half = self.model.head, self.vocab_size // 2
        self.model.head = lambda x: head(x)[..., :half]
        try:
            return super().generate(prompt, num_tokens)
        finally:
            self.model.head = head
""",
        PLAIN,
        ("invalid", "rejected"),
        SPOILT,
    ),
    Attack(
        "leaks-the-target-under-teacher-forcing",
        """
class Cheat(Engine):
    def reveal(self, token):
        logits = super().reveal(token).clone()
        logits[token] += 8.0  # the token that was just told, in case it is asked for
        return logits
""",
        PLAIN,
        ("rejected", "invalid"),
        SPOILT,
    ),
    Attack(
        "pruned-vocabulary",
        """
class Cheat(Engine):
    def begin(self, prompt):
        return self.prune(super().begin(prompt))
    def reveal(self, token):
        return self.prune(super().reveal(token))
    def prune(self, logits):
        logits = logits.clone()
        logits[self.vocab_size // 2 :] = -1e9
        return logits
""",
        PLAIN,
        ("rejected",),
        r"^quality on",
    ),
    Attack(
        "coarse-numbers",
        """
import torch
def matrices(module):
    for part in vars(module).values():
        if isinstance(part, torch.Tensor) and part.dim() == 2:
            yield part
        elif hasattr(part, "__dict__"):
            yield from matrices(part)
class Cheat(Engine):
    def begin(self, prompt):
        if not hasattr(self, "coarse"):
            self.coarse = True
            with torch.inference_mode():
                for weight in matrices(self.model.layers[0]):
                    step = weight.abs().max() / 2
                    weight.copy_((weight / step).round() * step)
        return super().begin(prompt)
    def generate(self, prompt, num_tokens):
        self.begin(prompt)
        return super().generate(prompt, num_tokens)
""",
        PLAIN,
        ("rejected",),
        SPOILT,
    ),
    # Answers that aren't
    Attack(
        "too-few-tokens",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return super().generate(prompt, num_tokens // 2)
""",
        PLAIN,
        ("invalid",),
        r"tokens instead of",
    ),
    Attack(
        "padded-tokens",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        half = num_tokens // 2
        return super().generate(prompt, half) + [0] * (num_tokens - half)
""",
        PLAIN,
        ("invalid", "rejected"),
        SPOILT,
    ),
    Attack(
        "repeated-tokens",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return super().generate(prompt, 1) * num_tokens
""",
        PLAIN,
        ("invalid", "rejected"),
        SPOILT,
    ),
    Attack(
        "ids-outside-the-vocabulary",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return [self.vocab_size] * num_tokens
""",
        PLAIN,
        ("invalid",),
        r"token 512 is outside",
    ),
    Attack(
        "tokens-as-truth-values",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return [True] * num_tokens
""",
        PLAIN,
        ("invalid",),
        r"not a list of integers",
    ),
    Attack(
        "pickled-bomb",
        """
import pickle
class Bomb:
    def __reduce__(self):
        return (print, ("exploded",))
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        return pickle.dumps(Bomb())
""",
        PLAIN,
        ("invalid",),
        r"not a list of integers",
    ),
    Attack(
        "nan-logits",
        """
class Cheat(Engine):
    def reveal(self, token):
        return super().reveal(token) * float("nan")
""",
        PLAIN,
        ("invalid",),
        r"NaN or infinity",
    ),
    Attack(
        "huge-logits",
        """
class Cheat(Engine):
    def reveal(self, token):
        return super().reveal(token) * 1e37
""",
        PLAIN,
        ("invalid", "rejected"),
        r"NaN or infinity|^quality on",
    ),
    Attack(
        "another-vocabulary",
        """
class Cheat(Engine):
    @property
    def vocab_size(self):
        return 7
    @vocab_size.setter
    def vocab_size(self, value):
        pass
""",
        PLAIN,
        ("invalid",),
        r"vocabulary of 7",
    ),
    # The wire
    Attack(
        "forged-frame-before-it-is-asked",
        """
import os, struct, sys
import msgpack
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        tokens = super().generate(prompt, num_tokens)
        payload = msgpack.packb({"tokens": tokens})
        frame = struct.pack(">I", len(payload)) + payload
        os.write(int(sys.argv[1]), frame + frame)  # this answer, and the next one ahead of time
        return tokens
""",
        PLAIN,
        ("invalid",),
        r"answered before it was asked",
    ),
    Attack(
        "oversize-frame",
        """
import os, struct, sys
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        os.write(int(sys.argv[1]), struct.pack(">I", 3 << 30))
        return super().generate(prompt, num_tokens)
""",
        PLAIN,
        ("invalid",),
        r"frame of 3221225472 bytes, limit",
    ),
    Attack(
        "garbage-frame",
        """
import os, struct, sys
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        os.write(int(sys.argv[1]), struct.pack(">I", 4) + bytes([0xC1] * 4))
        return super().generate(prompt, num_tokens)
""",
        PLAIN,
        ("invalid",),
        r"is not msgpack",
    ),
    Attack(
        "escape-codes-in-its-error",
        r"""
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        raise ValueError("\x1b[2J\x1b[31mKEPT" + "!" * 100_000)
""",
        PLAIN,
        ("failed",),
        r"^ValueError: \[2J\[31mKEPT!{1,300}$",
    ),
    Attack(
        "early-exit",
        """
import os
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        os._exit(0)
""",
        PLAIN,
        ("failed",),
        r"process ended",
    ),
    # The machine
    Attack(
        "fork-bomb",
        """
import os, time
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(600)
            except OSError:
                time.sleep(0.1)
""",
        """
import subprocess
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        subprocess.run(["/bin/true"], check=True)
        return super().generate(prompt, num_tokens)
""",
        ("failed",),
        r"tasks alive, limit|resident, limit",
    ),
    Attack(
        "disk-fill",
        """
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        for number in range(10_000):
            with open(f"/tmp/{number}", "wb") as file:
                file.write(bytes(32 << 20))
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        with open("/tmp/scratch", "wb") as file:
            file.write(bytes(1 << 20))
        return super().generate(prompt, num_tokens)
""",
        ("failed",),
        r"No space left on device",
    ),
    Attack(
        "fill-dev-instead",
        """
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        try:
            with open("/dev/filler", "wb") as file:
                file.write(bytes(1 << 20))
            return Engine.generate(self, prompt, num_tokens)
        except OSError:
            return super().generate(prompt, num_tokens)
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        with open("/dev/null", "wb") as file:
            file.write(bytes(1 << 20))
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "memory-bomb",
        """
import mmap
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        kept = []
        while True:  # shared memory isn't private: no rlimit counts it
            block = mmap.mmap(-1, 1 << 28)
            for offset in range(0, 1 << 28, 4096):
                block[offset] = 1
            kept.append(block)
""",
        """
import mmap
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        mmap.mmap(-1, 1 << 20).close()
        return super().generate(prompt, num_tokens)
""",
        ("failed",),
        r"resident, limit",
    ),
    Attack(
        "endless-output",
        """
import os
class Cheat(Engine):
    def generate(self, prompt, num_tokens):
        block = b"x" * (1 << 20)
        while True:
            os.write(1, block)
""",
        """
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        print("one line a request")
        return super().generate(prompt, num_tokens)
""",
        ("failed",),
        r"process ended|File too large",
    ),
    Attack(
        "network",
        """
import socket
def reach():
    for host, port in (("127.0.0.1", 22), ("127.0.0.1", 5432), ("1.1.1.1", 53)):
        try:
            socket.create_connection((host, port), timeout=0.2)
            return True
        except OSError:  # its own loopback, with nobody there; or no network at all
            continue
    return False
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        engine = Engine if reach() else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "signals-to-the-parent",
        """
import os, signal
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        for pid in {os.getppid(), 1}:
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGUSR1):
                try:
                    os.kill(pid, number)
                except OSError:
                    pass
        return super().generate(prompt, num_tokens)
""",
        """
import os, signal
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        os.kill(os.getpid(), 0)
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "ptrace-and-process-memory",
        """
import ctypes
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        libc = ctypes.CDLL(None, use_errno=True)
        attached = libc.ptrace(16, 1, 0, 0) == 0
        buffer = ctypes.create_string_buffer(8)
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
        read = libc.process_vm_readv(1, vector, 1, vector, 1, 0) >= 0
        engine = Engine if attached or read else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "namespaces-mounts-and-io-uring",
        """
import ctypes
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        libc = ctypes.CDLL(None, use_errno=True)
        done = [
            libc.unshare(0x10000000) == 0,
            libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0,
            libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0,  # io_uring_setup
            libc.syscall(321, 0, ctypes.create_string_buffer(256), 128) >= 0,  # bpf
            libc.syscall(323, 0) >= 0,  # userfaultfd
            libc.syscall(56, 0x10000000, 0, 0, 0, 0) >= 0,  # clone with a user namespace
        ]
        engine = Engine if any(done) else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        PLAIN,
        *NO_GAIN,
    ),
    Attack(
        "overwritten-modules-and-sitecustomize",
        """
import os, site, sys
def overwrite():
    folders = (*site.getsitepackages(), *sys.path)
    places = [os.path.join(path, "sitecustomize.py") for path in folders]
    places += [sys.argv[0], "/inside/keeper.py", "/usr/lib/python3/sitecustomize.py", "/evil.py"]
    for place in places:
        try:
            with open(place, "a") as file:
                file.write("# mine now")
            if not place.startswith("/tmp"):
                return place
        except OSError:
            continue
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        engine = Engine if overwrite() else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        """
import sys
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        sys.modules["mine"] = sys
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "patched-worker",
        """
import sys
worker = sys.modules["__main__"]
real = worker._answer
def forged(engine, request):
    if request["do"] == "generate":
        return {"tokens": [1] * request["num_tokens"]}
    return real(engine, request)
worker._answer = forged
class Cheat(Engine):
    pass
""",
        PLAIN,
        ("invalid", "rejected"),
        SPOILT,
    ),
    Attack(
        "scheduling-tricks",
        """
import os
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        won = False
        for trick in (
            lambda: os.nice(-20),
            lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)),
            lambda: os.setpriority(os.PRIO_USER, 0, -20),
        ):
            try:
                trick()
                won = True
            except OSError:
                pass
        engine = Engine if won else Slow
        return engine.generate(self, prompt, num_tokens)
""",
        """
import torch
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        torch.set_num_threads(1)
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
    Attack(
        "determinism-flags",
        """
import torch
class Cheat(Slow):
    def generate(self, prompt, num_tokens):
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(True)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        return super().generate(prompt, num_tokens)
""",
        """
import torch
class Honest(Engine):
    def generate(self, prompt, num_tokens):
        torch.manual_seed(0)
        return super().generate(prompt, num_tokens)
""",
        *NO_GAIN,
    ),
]
