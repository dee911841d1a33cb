"""Tiny engines of a few lines, written to disk as trees: honest, and broken in one way each."""

from pathlib import Path

HONEST = """
import struct
class Logits(bytes):
    def numpy(self): return self
    def tobytes(self): return bytes(self)
class Engine:
    vocab_size = 8
    def generate(self, prompt, num_tokens):
        return [(sum(prompt) + i) % 8 for i in range(num_tokens)]
    def begin(self, prompt): self.last = prompt[-1]; return self.logits()
    def reveal(self, token): self.last = token; return self.logits()
    def logits(self): return Logits(struct.pack("<8f", *[float(self.last == i) for i in range(8)]))
def load(tree, model_dir, max_context): return Engine()
"""


def write_engine(root: Path, *changes: tuple[str, str]) -> Path:
    """Write the honest engine with some of its text replaced; return the tree."""
    source = HONEST
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    package = root / "engine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    (root / "levers.json").write_text("{}")
    return root
