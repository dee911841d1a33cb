"""Causal attention over the cache, with grouped key/value heads and an optional sliding window."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None,
    grouped: bool,
    here: Tensor | None = None,
) -> Tensor:
    """Attend from the last positions of the cache.

    Args:
        query: [length, num_heads, head_dim], the newest `length` positions.
        key, value: [num_kv_heads, total, head_dim], those positions and all before them.
        scale: factor on the scores.
        window: how many positions a query sees, itself included; None for all.
        grouped: stack the query heads that share a key/value head as rows of one product, instead
            of copying that head's keys and values once per query head.
        here: the position [1] of the only query, where those after it don't count.

    Returns:
        [length, num_heads * head_dim].
    """
    length, num_heads, head_dim = query.shape
    num_kv_heads, total = key.shape[0], key.shape[1]
    repeats = num_heads // num_kv_heads
    if length == 1 and here is None and window is not None and total > window:
        key, value = key[:, -window:], value[:, -window:]
    # A whole prompt at once is plainly causal, and the kernel then skips the empty half.
    whole = length == total and (window is None or total <= window)
    if here is not None:
        mask: Tensor | None = _seen(here[:, None], total, window)
    else:
        mask = None if length == 1 or whole else _mask(length, total, window, query.device)
    if grouped and (length == 1 or not whole):
        rows = query.view(length, num_kv_heads, repeats, head_dim).permute(1, 2, 0, 3)
        out = F.scaled_dot_product_attention(
            rows.reshape(1, num_kv_heads, repeats * length, head_dim),
            key[None],
            value[None],
            attn_mask=None if mask is None else mask.repeat(repeats, 1),
            scale=scale,
        )
        heads_first = out.reshape(num_heads, length, head_dim)  # on a GPU it comes strided
        return heads_first.transpose(0, 1).reshape(length, num_heads * head_dim)
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.repeat_interleave(repeats, 0)[None],
        value.repeat_interleave(repeats, 0)[None],
        attn_mask=mask,
        is_causal=whole and length > 1,
        scale=scale,
    )
    return out[0].transpose(0, 1).reshape(length, num_heads * head_dim)


def _mask(length: int, total: int, window: int | None, device: torch.device) -> Tensor:
    """Return [length, total], true where a query may look."""
    return _seen(torch.arange(total - length, total, device=device)[:, None], total, window)


def _seen(rows: Tensor, total: int, window: int | None) -> Tensor:
    columns = torch.arange(total, device=rows.device)[None, :]
    seen = columns <= rows
    return seen if window is None else seen & (columns > rows - window)
