"""How fast this GPU reads its memory, in GB/s: a script for a process of its own."""

import torch

_NUMBERS, _REPEATS = 1 << 29, 6  # 2 GB, which no cache holds


def main() -> None:
    """Print the best of a few readings."""
    data = torch.ones(_NUMBERS, device="cuda")
    best_ms = float("inf")
    for _ in range(_REPEATS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        data.sum()
        ended.record()
        torch.cuda.synchronize()
        best_ms = min(best_ms, begun.elapsed_time(ended))
    print(data.nbytes / best_ms / 1e6)


if __name__ == "__main__":
    main()
