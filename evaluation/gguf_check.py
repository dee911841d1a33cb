"""Which GGUF files transformers reads whole (5.17 to 5.22).

Its reader drops what it has no name for without a word, and the model that comes out is another
one. Such files are refused here; their safetensors checkpoint is the way.
"""

from pathlib import Path
from typing import Any

from gguf import GGUFReader

_READ = ("llama", "gemma3")
_GEMMA3_HEAD_DIM = (
    256  # transformers takes the scores' scale from it, whatever the file's heads are
)


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file that would lose something on its way through transformers.

    Raises:
        ValueError: an architecture, or a part of one, that its reader doesn't carry over.
    """
    reader = GGUFReader(path)

    def field(name: str, otherwise: Any = None) -> Any:
        found = reader.get_field(name)
        return otherwise if found is None else found.contents()

    architecture = field("general.architecture", "unknown")
    if architecture not in _READ:
        raise ValueError(
            f"GGUF of architecture {architecture!r}: only {' and '.join(_READ)} are read without "
            "loss; take the safetensors checkpoint"
        )
    scaled = float(field(f"{architecture}.rope.scaling.factor", 1.0)) != 1.0
    if scaled or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ValueError(
            "GGUF with scaled rotary frequencies: transformers would leave the scaling out; take "
            "the safetensors checkpoint"
        )
    head_dim = field(f"{architecture}.attention.key_length", _GEMMA3_HEAD_DIM)
    if architecture == "gemma3" and head_dim != _GEMMA3_HEAD_DIM:
        raise ValueError(
            f"GGUF of a gemma3 with heads of {head_dim}: transformers would scale scores for "
            f"{_GEMMA3_HEAD_DIM}; take the safetensors checkpoint"
        )
