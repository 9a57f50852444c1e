"""The paper's three mechanisms over one q, k, v: full causal softmax, linear over all positions, an exact window.

Sequences are short, so all three are masked quadratic products. Shapes: q, k, v [*, heads, T, d].
"""

import math

import torch
import torch.nn.functional as F

COSTS = (1.0, 0.15, 0.30)    # the paper's, of full, linear, local
PRIOR = (0.01, 0.86, 0.71)   # eps + beta0 (1 - cost), eps = 0.01, beta0 = 1


def visible(length, window):
    """Booleans [T, T], query by key: all up to the query itself, and the window that ends there."""
    back = torch.arange(length)[:, None] - torch.arange(length)[None]
    causal = back >= 0
    return causal, causal & (back < window)


def positive(x):
    """phi of linear attention."""
    return F.elu(x) + 1


def outputs(q, k, v, window):
    """-> normalised outputs of full, linear, local, stacked in front: [3, *, heads, T, d]."""
    causal, near = visible(q.shape[-2], window)
    score = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    kernel = torch.matmul(positive(q), positive(k).transpose(-1, -2)).masked_fill(~causal, 0.0)
    weights = (score.masked_fill(~causal, -math.inf).softmax(-1), kernel / kernel.sum(-1, keepdim=True),
               score.masked_fill(~near, -math.inf).softmax(-1))
    return torch.stack([torch.matmul(w, v) for w in weights])


def full(q, k, v):
    """Of a model without routing."""
    causal, _ = visible(q.shape[-2], 1)
    score = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return torch.matmul(score.masked_fill(~causal, -math.inf).softmax(-1), v)


def read_costs(length, window, dim):
    """What a row really reads over dense, [T, 3]: K and V are bfloat16, linear's state (elu + 1: f = d) is float32."""
    n = torch.arange(1, length + 1, dtype=torch.float64)
    state = (dim * dim + dim) * 4 / (4 * dim)
    return torch.stack([torch.ones_like(n), (state / n).clamp(max=1), n.clamp(max=window) / n], -1)
