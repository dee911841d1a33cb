"""Where measurements run. The loop knows only the `Evaluator` protocol; here is the local one."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from slipstream.kernels.census import bytes_per_token, read_shape
from slipstream.kernels.fit import effective
from slipstream.kernels.variants import read_tree

from .audits import Audit, audit_block, choose_blocks
from .baselines import baseline_tree, is_baseline
from .calibration import LogitNoise
from .challenge import Challenge
from .child import ChildEngine
from .conditions import Watch
from .errors import EngineFailedError, ExposedError, InvalidOutputError
from .fence import GpuFence
from .forcing import committed_logits
from .gates import DocumentScore
from .manifest import complete_model, programs_of
from .pairs import Pair, PairPlan, Stage, measure_pair, warm_up
from .prebuilt import kernels_for
from .profiling import Profile, profile
from .prompts import Prompt, Split
from .protocol import KernelCase
from .reference import Document, Reference, score
from .sandbox import AnySandbox, Limits, NoSandbox, problem
from .trust import exposure

if TYPE_CHECKING:
    from .plans import Plan

_NUM_WARM = 2  # engines kept loaded: a candidate and its rival


class Evaluator(Protocol):
    """Measures variants. Engines are named by variant id, or by a baseline's name."""

    def prepare(self) -> None:
        """Make ready what no experiment should pay for."""
        ...

    def expect(self, plan: "Plan") -> None:
        """Learn what will be asked about a variant: whoever is far away may work ahead."""
        ...

    def smoke(self, variant: str) -> str:
        """Run `variant` on a tiny input; raises `EngineError` if it doesn't work.

        Returns:
            Why it was not tried; empty if it was.
        """
        ...

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Generator[Pair, None, None]:
        """Measure pairs of a stage, one at a time; void ones are handed out too.

        Args:
            attempts: index of each pair to measure → attempts at it that were void already.
        """
        ...

    def scores(
        self, variant: str, split: Split, done: Collection[str]
    ) -> Generator[DocumentScore, None, None]:
        """Score the documents of a split that are not `done`, one at a time."""
        ...

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Generator[Audit, None, None]:
        """Audit `count` timed blocks of a stage's pairs, those aside that are `done`."""
        ...

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        """Take a decoded token of `variant` apart."""
        ...

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:
        """Compare kernels of `variant`, or all, with plain arithmetic; help, no evidence."""
        ...

    def release(self, variant: str) -> None:
        """Free what `variant` holds: it won't be measured again soon."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LocalEvaluator:
    """Engines as child processes on this machine, one pair at a time. Satisfies `Evaluator`.

    Args:
        prompts: what the reference continues to documents that quality is scored on.
        timed_prompts: fresh ones, drawn for this run.
        tree_of: where the tree of a variant lies.
        engine_dir: the model's folder as engines see it, with what guesses for it; by default as
            the reference sees it.
        seed: of everything that is drawn; secret until the run is over.
        scratch: a folder for the baselines' trees.
        unsafe_local: run changed source even without a sandbox.
        limits: what a variant's processes may use.
        salt: another one draws other held-out documents.
    """

    def __init__(
        self,
        challenge: Challenge,
        model_dir: Path,
        prompts: Sequence[Prompt],
        timed_prompts: Sequence[Prompt],
        tree_of: Callable[[str], Path],
        *,
        engine_dir: Path | None = None,
        vocab_size: int,
        seed: int,
        scratch: Path,
        sandbox: AnySandbox,
        unsafe_local: bool = False,
        limits: Limits | None = None,
        salt: str = "",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._challenge, self._model_dir, self._tree_of = challenge, model_dir, tree_of
        self._engine_dir = engine_dir or model_dir
        self._prompts, self._timed_prompts = prompts, timed_prompts
        self._vocab_size = vocab_size
        self._seed, self._scratch, self._sandbox, self._say = seed, scratch, sandbox, say
        self._unsafe_local = unsafe_local
        self._limits = limits or Limits()
        self._reference = Reference(
            model_dir,
            challenge.quality,
            max_context=challenge.workload.max_context,
            sandbox=sandbox,
            salt=salt,
        )
        self._watch = Watch(
            gpu=challenge.device == "cuda", max_disturbance=challenge.acceptance.max_disturbance
        )
        self._fence = GpuFence() if challenge.device == "cuda" else None
        self._warm: OrderedDict[str, ChildEngine] = OrderedDict()
        self._races: dict[str, str] = {}  # what each engine was a rival in last

    def prepare(self) -> None:
        """Make the reference's documents, so that no experiment pays for them."""
        if self._challenge.quality.enabled:
            for split in Split:
                self._documents(split)
            noise = self._noise()
            self._say(
                f"noise of the logits here: plain bf16 decoding strays by {noise.rounding:.3f} "
                f"from itself and by {noise.floor:.3f} from the reference"
            )

    def expect(self, plan: "Plan") -> None:
        """Nothing: what is asked is measured at once."""

    def smoke(self, variant: str) -> str:
        """Start `variant` and let it decode a few tokens."""
        self._engine(variant)
        return ""

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Generator[Pair, None, None]:
        """Measure pairs. Confirmation starts both engines anew, on held-out prompts.

        The rival is started anew for each race: what it saw in others must not help it.
        """
        held_out = stage in (Stage.CONFIRM, Stage.BASELINE)
        split = Split.HELD_OUT if held_out else Split.PUBLIC
        prompts = [prompt for prompt in self._timed_prompts if prompt.split is split]
        num_tokens = self._challenge.workload.num_tokens
        race = f"{variant}:{rival}"
        plan = PairPlan(stage, prompts, self._seed, race, num_tokens)
        if stage is Stage.CONFIRM:
            self.release(variant)
        # With several experiments in flight another race may have come in between.
        came_between = not is_baseline(rival) and self._races.get(rival, race) != race
        if came_between or stage in (Stage.SCREEN, Stage.CONFIRM, Stage.LOOK):
            self.release(rival)
        self._races[rival] = race
        twin = f"{rival}#twin" if variant == rival else rival
        for index, attempt in attempts.items():
            candidate, other = self._engine(variant), self._engine(twin)
            yield from measure_pair(candidate, other, plan, index, self._watch, attempt=attempt)

    def scores(
        self, variant: str, split: Split, done: Collection[str]
    ) -> Generator[DocumentScore, None, None]:
        """Score documents through the engine's decode step."""
        for document in self._documents(split):
            if document.prompt.id not in done:
                yield score(self._engine(variant), document)

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Generator[Audit, None, None]:
        """Audit timed blocks in a fresh process, which can't know which prompts were timed."""
        tokens_of = {prompt.id: prompt.tokens for prompt in self._timed_prompts}
        blocks = choose_blocks(self._seed, variant, pairs[0].stage, len(pairs), count)
        noise = self._noise()
        self.release(variant)
        for position, block in blocks:
            pair = pairs[position]
            if (pair.index, block) in done:
                continue
            prompt, timed = tokens_of[pair.prompts[block]], pair.tokens[block]
            replayed = committed_logits(self._engine(variant), prompt, timed)
            reference = self._reference.logits(prompt, timed)
            yield audit_block(pair.stage, pair.index, block, timed, replayed, reference, noise)

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        """Profile `variant` on a fresh prompt.

        Args:
            bandwidth_gbps: how fast its device reads.
        """
        engine, num_tokens = self._engine(variant), self._challenge.workload.num_tokens
        prompt = list(self._timed_prompts[0].tokens)
        settings = effective(read_tree(self._tree_of(variant)).settings)
        context = len(prompt) + num_tokens // 2
        census = bytes_per_token(read_shape(self._model_dir), settings, context=context)
        return profile(engine, prompt, num_tokens, census, bandwidth_gbps)

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:
        """Run reference tests beside the loaded engine, in its sandbox."""
        return self._engine(variant).test_kernels(kernels)

    def release(self, variant: str) -> None:
        """Stop the engine of `variant`, and its twin's."""
        for name in (variant, f"{variant}#twin"):
            if name in self._warm:
                self._warm.pop(name).close()

    def close(self) -> None:
        """Stop all engines."""
        self._reference.close()
        while self._warm:
            self._warm.popitem()[1].close()
        if self._fence is not None:
            self._fence.close()

    def _documents(self, split: Split) -> Sequence[Document]:
        def progress(done: int, total: int) -> None:
            if done % 6 == 0:
                self._say(f"reference writes the {split} ground truth, once: {done}/{total}")

        own = [prompt for prompt in self._prompts if prompt.split is split]
        return self._reference.documents(own, progress)

    def _noise(self) -> LogitNoise:
        public = [prompt for prompt in self._prompts if prompt.split is Split.PUBLIC]
        return self._reference.noise(public, self._say)

    def _engine(self, name: str) -> ChildEngine:
        """Return the warm engine `name`, starting it and warming it up if needed."""
        if name in self._warm:
            self._warm.move_to_end(name)
            return self._warm[name]
        while len(self._warm) >= _NUM_WARM:
            self._warm.popitem(last=False)[1].close()
        if self._fence is not None:  # an engine before may have ended it
            self._fence.start()
        variant = name.partition("#")[0]
        workload = self._challenge.workload
        folder, programs, kernels = self._start_of(variant)
        engine = ChildEngine(
            folder,
            self._engine_dir,
            max_context=workload.max_context,
            sandbox=self._sandbox,
            limits=self._limits,
            fence=self._fence,
            programs=programs,
            kernels=kernels,
        )
        self._warm[name] = engine
        try:
            if engine.vocab_size != self._vocab_size:
                raise InvalidOutputError(
                    f"vocabulary of {engine.vocab_size}, the model's is {self._vocab_size}"
                )
            warm_up(engine, self._prompts[0], workload.num_tokens)
        except BaseException:
            self.release(variant)
            raise
        return engine

    def _start_of(self, variant: str) -> tuple[Path, Path | None, Path | None]:
        """Return the folders of an engine's files, of programs that it needs, and of kernels."""
        if is_baseline(variant):
            return baseline_tree(variant, self._scratch), None, None
        folder = self._tree_of(variant)
        tree = read_tree(folder)
        if tree.id != variant:
            raise EngineFailedError(f"the tree stored as {variant} is {tree.id}: it was changed")
        no_sandbox = ""
        if isinstance(self._sandbox, NoSandbox):
            no_sandbox = problem() or "none was asked for"
        if not self._unsafe_local and (reason := exposure(tree.engine_id, no_sandbox)):
            raise ExposedError(reason)
        if not tree.serves:
            fused = effective(tree.settings)["step"] != "eager"
            kernels = kernels_for(self._challenge.device, self._say) if fused else None
            return folder, None, kernels
        programs = programs_of(tree, self._say)
        complete_model(tree, self._challenge.model, self._engine_dir)
        return folder, programs, None
