"""Where measurements run. The loop knows only the `Evaluator` protocol; here is the local one."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from .baselines import baseline_tree
from .challenge import Challenge
from .child import ChildEngine
from .gates import DocumentScore
from .pairs import Pair, PairPlan, Stage, measure_pair, warm_up
from .prompts import Prompt, Split
from .reference import Document, Reference, score

_NUM_WARM = 2  # engines kept loaded: a candidate and its rival


class Evaluator(Protocol):
    """Measures variants. Engines are named by variant id, or by a baseline's name."""

    def smoke(self, variant: str) -> None:
        """Run `variant` on a tiny input; raises `EngineError` if it doesn't work."""
        ...

    def pairs(
        self, variant: str, rival: str, stage: Stage, indices: Sequence[int]
    ) -> Iterator[Pair]:
        """Measure the pairs `indices` of a stage, one at a time."""
        ...

    def scores(self, variant: str, split: Split, done: Collection[str]) -> Iterator[DocumentScore]:
        """Score the documents of a split that are not `done`, one at a time."""
        ...

    def release(self, variant: str) -> None:
        """Free what `variant` holds: it won't be measured again soon."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LocalEvaluator:
    """Engines as child processes on this machine, one pair at a time. Satisfies `Evaluator`."""

    def __init__(
        self,
        challenge: Challenge,
        model_dir: Path,
        prompts: Sequence[Prompt],
        tree_of: Callable[[str], Path],
        *,
        seed: int,
        scratch: Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._challenge, self._model_dir, self._tree_of = challenge, model_dir, tree_of
        self._prompts, self._seed, self._scratch, self._say = prompts, seed, scratch, say
        self._reference = Reference(
            model_dir, challenge.quality, max_context=challenge.workload.max_context
        )
        self._warm: OrderedDict[str, ChildEngine] = OrderedDict()

    def prepare(self) -> None:
        """Make the reference's documents, so that no experiment pays for them."""
        if self._challenge.quality.enabled:
            for split in Split:
                self._documents(split)

    def smoke(self, variant: str) -> None:
        """Start `variant` and let it decode a few tokens."""
        self._engine(variant)

    def pairs(
        self, variant: str, rival: str, stage: Stage, indices: Sequence[int]
    ) -> Iterator[Pair]:
        """Measure pairs. Confirmation starts both engines anew, on held-out prompts."""
        held_out = stage in (Stage.CONFIRM, Stage.BASELINE)
        prompts = self._split(Split.HELD_OUT if held_out else Split.PUBLIC)
        plan = PairPlan(stage, prompts, self._seed)
        num_tokens = self._challenge.workload.num_tokens
        if stage is Stage.CONFIRM:
            self.release(variant)
            self.release(rival)
        twin = f"{rival}#twin" if variant == rival else rival
        for index in indices:
            candidate, other = self._engine(variant), self._engine(twin)
            yield measure_pair(candidate, other, plan, index, num_tokens)

    def scores(self, variant: str, split: Split, done: Collection[str]) -> Iterator[DocumentScore]:
        """Score documents through the engine's decode step."""
        for document in self._documents(split):
            if document.prompt.id not in done:
                yield score(self._engine(variant), document)

    def release(self, variant: str) -> None:
        """Stop the engine of `variant`, and its twin's."""
        for name in (variant, f"{variant}#twin"):
            if name in self._warm:
                self._warm.pop(name).close()

    def close(self) -> None:
        """Stop all engines."""
        while self._warm:
            self._warm.popitem()[1].close()

    def _split(self, split: Split) -> list[Prompt]:
        return [prompt for prompt in self._prompts if prompt.split is split]

    def _documents(self, split: Split) -> Sequence[Document]:
        def progress(done: int, total: int) -> None:
            if done % 6 == 0:
                self._say(f"reference writes the {split} ground truth, once: {done}/{total}")

        return self._reference.documents(self._split(split), progress)

    def _engine(self, name: str) -> ChildEngine:
        """Return the warm engine `name`, starting it and warming it up if needed."""
        if name in self._warm:
            self._warm.move_to_end(name)
            return self._warm[name]
        while len(self._warm) >= _NUM_WARM:
            self._warm.popitem(last=False)[1].close()
        variant = name.partition("#")[0]
        if variant.startswith("transformers-"):
            tree = baseline_tree(variant, self._scratch)
        else:
            tree = self._tree_of(variant)
        workload = self._challenge.workload
        engine = ChildEngine(tree, self._model_dir, max_context=workload.max_context)
        self._warm[name] = engine
        try:
            warm_up(engine, self._split(Split.PUBLIC)[0], workload.num_tokens)
        except BaseException:
            self.release(variant)
            raise
        return engine
