"""Exact softmax attention that also returns its log-sum-exp, fast where PyTorch has a blocked CPU kernel for it.

Shapes: q [batch, heads, rows, d], k and v [batch, heads, keys, d]; scores are scaled by 1 / sqrt(d). The output is
differentiable, the log-sum-exp is not (no training stage needs its gradient).
"""

import math

import torch

ROWS_AT_ONCE = 256  # of the plain path: bounds its memory at rows x keys


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
