"""The coder that needs no key: it sets levers and writes no source."""

from slipstream.kernels.variants import Tree
from slipstream.memory.records import Hypothesis


class OfflineCoder:
    """Satisfies `Coder`."""

    name = "offline-coder"

    def implement(self, hypothesis: Hypothesis, parent: Tree) -> Tree:
        """Return the parent's source with the hypothesis' settings."""
        return parent.with_settings(hypothesis.settings)

    def repair(self, hypothesis: Hypothesis, tree: Tree, error: str) -> Tree | None:  # noqa: ARG002
        """Give up: a setting that doesn't run can't be mended without touching the source."""
        return None
