"""Static inspection names suspicious new lines, and is quiet about the shipped engine."""

import pytest

from slipstream.evaluation.inspector import inspect_change
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import seed_tree

OLD = b"import os\n\nclass Engine:\n    pass\n"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import threading", "threads"),
        ("from time import sleep", "clocks"),
        ("x = os.environ['KEY']", "environment"),
        ("open('/tmp/x')", "file"),
        ("sys.meta_path.append(1)", "imported"),
        ("sys.modules['torch'] = 1", "other modules"),
        ("eval('1')", "runs text"),
        ("import socket", "network"),
        ("def broken(:", "not Python"),
    ],
)
def test_suspicious_lines_are_named(line: str, what: str) -> None:
    (found,) = inspect_change({"a.py": OLD}, {"a.py": OLD + line.encode() + b"\n"})
    assert what in found.what
    assert (found.path, found.line) == ("a.py", 5)


def test_state_that_one_door_leaves_for_another_is_named() -> None:
    source = b"""
class Engine:
    def generate(self, prompt, num_tokens):
        self.timed = True
    def begin(self, prompt):
        if self.timed:
            return 1
"""
    (found,) = inspect_change({}, {"engine.py": source})
    assert found.what == "`begin` depends on what `generate` left in self.timed"
    assert found.line == 6


def test_what_was_there_before_is_not_repeated() -> None:
    source = b"import threading\n"
    assert not inspect_change({"a.py": source}, {"a.py": source + b"x = 1\n"})
    tree = seed_tree(SEED_SETTINGS)
    assert not inspect_change(tree.files, tree.with_settings({"dtype": "float32"}).files)
