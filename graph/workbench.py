"""What a coder may try on its tree while it writes; in the sandbox, as whatever an engine does."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from slipstream.agents.prompting import describe_task
from slipstream.agents.quoting import quote
from slipstream.evaluation.errors import EngineError, WorkerLostError
from slipstream.evaluation.gates import DocumentScore, report
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.protocol import KernelCase
from slipstream.kernels.variants import Tree
from slipstream.memory.records import Hypothesis

from .context import LoopContext
from .inspection import refused
from .measuring import reserve_s

_DOCUMENTS = 4
_LOG_SHOWN = 4000
_SHARE = 0.5  # of the time that is left, for one hypothesis' code


@dataclass
class LoopBench:
    """Satisfies `Workbench` for one hypothesis of a run."""

    context: LoopContext
    hypothesis: Hypothesis

    def __post_init__(self) -> None:
        keep_s = reserve_s(self.context, self.hypothesis.parent)
        self._until_s = self.context.budget.spent_s + max(
            0.0, _SHARE * (self.context.budget.left_s - keep_s)
        )

    @property
    def facts(self) -> str:
        """The model, the machine, the workload and the gate, in words."""
        return describe_task(self.context.shape, self.context.machine, self.context.challenge)

    @property
    def left_s(self) -> float:
        """Seconds that the run can spare for this hypothesis."""
        return self._until_s - self.context.budget.spent_s

    def run(self, tree: Tree) -> str:
        """Let a tree decode a tiny input; return what went wrong, or nothing."""
        name = f"run {self.hypothesis.id} {tree.id}"
        return str(self.context.tape.observe(name, lambda: self._run(tree)))

    def check(self, tree: Tree) -> str:
        """Compare a tree with the reference on a few documents; return the figures in words."""
        name = f"check {self.hypothesis.id} {tree.id}"
        return str(self.context.tape.observe(name, lambda: self._check(tree)))

    def test(self, tree: Tree, kernel: str) -> str:
        """Compare a kernel of a tree, or "all", with plain arithmetic; return it in words."""
        name = f"test {kernel} {self.hypothesis.id} {tree.id}"
        return str(self.context.tape.observe(name, lambda: self._test(tree, kernel)))

    def _run(self, tree: Tree) -> str:
        context = self.context
        if reason := context.refusal(tree.settings):
            return reason
        if reason := refused(tree.engine_id, context):
            return reason
        context.variants.add(tree)
        try:
            context.evaluator.smoke(tree.id)
        except EngineError as error:
            return f"{error}\n{error.log[-_LOG_SHOWN:]}".strip()
        finally:
            context.evaluator.release(tree.id)
        return ""

    def _test(self, tree: Tree, kernel: str) -> str:
        context = self.context
        if tree.serves:
            return "a server has no kernels to test here: use run and check"
        if context.rented:
            return "not tested: measurements are jobs elsewhere; what counts is measured there"
        if trouble := self._run(tree):
            return f"it doesn't run:\n{quote(trouble, 'the engine', _LOG_SHOWN)}"
        kernels = () if kernel == "all" else (kernel,)
        try:
            cases = context.evaluator.test_kernels(tree.id, kernels)
        except EngineError as error:
            told = f"{error}\n{error.log[-_LOG_SHOWN:]}"
            return f"it fails:\n{quote(told, 'the engine', 2 * _LOG_SHOWN)}"
        finally:
            context.evaluator.release(tree.id)
        return _in_words(cases)

    def _check(self, tree: Tree) -> str:
        context = self.context
        if not context.num_documents:
            return "this challenge doesn't judge quality: there is nothing to compare with"
        if context.rented:
            return "not checked: measurements are jobs elsewhere; what counts is measured there"
        if trouble := self._run(tree):
            return f"it doesn't run:\n{quote(trouble, 'the engine', _LOG_SHOWN)}"
        scores: list[DocumentScore] = []
        try:
            with closing(context.evaluator.scores(tree.id, Split.PUBLIC, ())) as found:
                scores += islice(found, _DOCUMENTS)
        except EngineError as error:
            told = f"{error}\n{error.log[-_LOG_SHOWN:]}"
            return f"it fails:\n{quote(told, 'the engine', 2 * _LOG_SHOWN)}"
        except WorkerLostError as error:
            return f"not checked: {error}; try again"
        finally:
            context.evaluator.release(tree.id)
        shown = report(scores)
        return (
            f"against the reference, on {shown.num_tokens} tokens of {len(scores)} documents: PPL "
            f"{shown.ppl_rise:+.2%}, KL {shown.kl:.5f}, top-1 {shown.top1:.1%}"
        )


def _in_words(cases: Sequence[KernelCase]) -> str:
    tested = [case for case in cases if case.error >= 0 or not case.ok]
    missing = {case.kernel: case.case for case in cases if case not in tested}
    counted = Counter(case.kernel for case in tested)
    summary = ", ".join(f"{name} {count}" for name, count in counted.items())
    left_out = "".join(f"; {name} {why}" for name, why in missing.items())
    wrong = [case for case in tested if not case.ok]
    if not wrong:
        return f"right in all cases: {summary or 'none'}{left_out}"
    told = "\n".join(
        f"{case.kernel}: {case.case}"
        if case.error < 0
        else f"{case.kernel}, {case.case}: off by {case.error:.2g}, allowed {case.bound:.2g}"
        for case in wrong
    )
    return (
        f"wrong in {len(wrong)} of {len(tested)} cases ({summary}){left_out}:\n"
        f"{quote(told, 'the engine', _LOG_SHOWN)}"
    )
