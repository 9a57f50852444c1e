"""Exact softmax attention that also returns its log-sum-exp, fast where PyTorch has a blocked CPU kernel for it.

Shapes: q [batch, heads, rows, d], k and v [batch, heads, keys, d]; scores are scaled by 1 / sqrt(d). The output is
differentiable, the log-sum-exp is not (no training stage needs its gradient).
"""

import math

import torch

ROWS_AT_ONCE = 256    # of the plain path: bounds its memory at rows x keys
CHOSEN_AT_ONCE = 256  # of a pass for chosen rows: they share keys, but read those after them for nothing


def _flash():
    """aten's blocked kernel (PyTorch 2.2 and later) or None."""
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def attend(q, k, v, mask=None, causal=False):
    """mask: additive, [rows, keys]. causal: row i reads keys 0..i (rows == keys). -> o like q, lse float [b, h, rows]."""
    flash = _flash()
    if flash is None or q.dtype == torch.float64:
        return attend_plain(q, k, v, mask, causal)
    if mask is not None:
        mask = mask.to(q.dtype)[None, None]
    o, lse = flash(q, k, v, 0.0, causal, attn_mask=mask)
    return o, lse.detach().float()


def attend_plain(q, k, v, mask=None, causal=False):
    scale, kt = 1 / math.sqrt(q.shape[-1]), k.transpose(-1, -2)
    outputs, sums = [], []
    for begin in range(0, q.shape[-2], ROWS_AT_ONCE):
        rows = q[..., begin:begin + ROWS_AT_ONCE, :]
        end = begin + rows.shape[-2]
        keys = end if causal else k.shape[-2]
        score = torch.matmul(rows, kt[..., :keys]) * scale
        score = score if score.dtype == torch.float64 else score.float()
        if causal:
            later = torch.arange(keys)[None] > torch.arange(begin, end)[:, None]
            score = score.masked_fill(later, -math.inf)
        if mask is not None:
            score = score + mask[begin:end]
        lse = score.logsumexp(-1)
        outputs.append(torch.matmul((score - lse[..., None]).exp().to(v.dtype), v[..., :keys, :]))
        sums.append(lse.detach())
    return torch.cat(outputs, -2), torch.cat(sums, -1)


def attend_causal(q, k, v):
    """q [Hq, T, d], k and v [Hkv, T, d] -> o [Hq, T, d], lse [Hq, T]: the unmodified model's attention."""
    group = q.shape[0] // k.shape[0]
    o, lse = attend(q[None], k.repeat_interleave(group, 0)[None], v.repeat_interleave(group, 0)[None], causal=True)
    return o[0], lse[0]


class _ChosenRows(torch.autograd.Function):
    """o, whose gradient is that of the chosen rows only: the others' must be zero, as a hard decision makes it."""

    @staticmethod
    def forward(ctx, q, k, v, known, chosen):
        o, lse = known
        ctx.save_for_backward(q, k, v, o, lse, chosen)
        return o.view_as(o)

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, o, lse, chosen = ctx.saved_tensors
        kv_heads, length, dim = k.shape
        group = q.shape[0] // kv_heads
        by_head = [x.reshape(kv_heads, group, length, -1) for x in (gradient, q, o, lse)]
        for_q, for_k, for_v = torch.zeros_like(by_head[1]), torch.zeros(k.shape), torch.zeros(v.shape)
        for heads, rows, keys in _row_batches(chosen):
            d_out, part_q, part_o, part_lse = (_rows_of(x, heads, rows) for x in by_head)
            part_k, part_v = _keys_of(k, heads, keys), _keys_of(v, heads, keys)
            d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                d_out, part_q, part_k, part_v, part_o, part_lse[..., 0], 0.0, False, attn_mask=_later(rows, keys, group, q.dtype))
            for i, h in enumerate(heads):
                for_q[h, :, rows[i]] = d_q[i, 0].view(group, -1, dim)
                for_k[h, :keys] += d_k[i, 0]
                for_v[h, :keys] += d_v[i, 0]
        return for_q.view_as(q), for_k.to(k.dtype), for_v.to(v.dtype), None, None


def _row_batches(chosen):
    """chosen [Hkv, T] -> (KV heads, their rows [2, n], keys to read): pieces of one length, those that end late first."""
    pieces = []
    for head in range(len(chosen)):
        pieces += [(head, rows) for rows in chosen[head].nonzero()[:, 0].split(CHOSEN_AT_ONCE) if len(rows)]
    pieces.sort(key=lambda piece: (len(piece[1]), int(piece[1][-1])), reverse=True)
    while pieces:
        size = len(pieces[0][1])
        batch = [p for p in pieces[:2] if len(p[1]) == size]  # one for each of two threads
        pieces = pieces[len(batch):]
        rows = torch.stack([rows for _, rows in batch])
        yield [head for head, _ in batch], rows, int(rows.max()) + 1


def _rows_of(x, heads, rows):
    """x [Hkv, g, T, *] -> [batch, 1, g * n, *]: a head's query group is folded into rows, so that they share their keys."""
    return torch.stack([x[h][:, r].flatten(0, 1) for h, r in zip(heads, rows)])[:, None]


def _keys_of(x, heads, keys):
    return torch.stack([x[h, :keys] for h in heads])[:, None]


def _later(rows, keys, group, dtype):
    """Additive mask [batch, 1, g * n, keys] that hides keys after their rows."""
    later = torch.arange(keys) > rows[:, :, None]
    return torch.zeros(later.shape, dtype=dtype).masked_fill_(later, -math.inf).repeat(1, group, 1)[:, None]


def attend_rows(q, k, v, chosen):
    """attend_causal's o [Hq, T, d] of the rows chosen [Hkv, T]; the others' have no meaning. Not differentiable.

    For a fifth of the rows it takes about a fifth of the time, where there is a blocked kernel.
    """
    flash = _flash()
    if flash is None or q.dtype == torch.float64:
        return attend_causal(q, k, v)[0]
    kv_heads, length, dim = k.shape
    by_head = q.reshape(kv_heads, -1, length, dim)
    o, group = torch.zeros_like(by_head), by_head.shape[1]
    for heads, rows, keys in _row_batches(chosen):
        part, _ = flash(_rows_of(by_head, heads, rows), _keys_of(k, heads, keys), _keys_of(v, heads, keys), 0.0, False,
                        attn_mask=_later(rows, keys, group, q.dtype))
        for i, h in enumerate(heads):
            o[h, :, rows[i]] = part[i, 0].view(group, -1, dim)
    return o.view_as(q)


def attend_chosen(q, k, v, chosen, known):
    """attend_causal's o, differentiable for the rows chosen [Hkv, T] alone; known() gives its o and lse, once computed.

    Where there is no blocked kernel it is computed here, differentiable for all rows.
    """
    if _flash() is None or q.dtype == torch.float64:
        return attend_causal(q, k, v)[0]
    return _ChosenRows.apply(q, k, v, known(), chosen)
