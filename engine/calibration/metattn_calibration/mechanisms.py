"""The three mechanisms over one q, k, v, as the engine computes them: nested on the near partial P0.

A row at position t has the frontier a(t) = block * floor(max(0, t - window + 1) / block). P0 is the exact softmax over
the sinks {0..s-1} and [max(a, s), t]; local = P0, full = P0 merged with the exact far span [s, a), linear = P0 merged
with a kernel far part. Rows are *eligible* for routing iff a(t) > s; before the first such row, `Geometry.first`, the
three are equal. Rows from there on come in groups of `block` that share a frontier, so group i reads the linear state
of blocks 0..i and one window of keys: both are batched products without a per-row mask of the far part.
"""

import dataclasses
import math

import torch

from .attention import attend, attend_causal
from .errors import CalibrationError

FULL, LINEAR, LOCAL = 0, 1, 2
MECHANISMS = ("full", "linear", "local")


@dataclasses.dataclass(frozen=True)
class Geometry:
    window: int = 256
    sinks: int = 4
    block: int = 64

    def __post_init__(self):
        if self.block < 1 or self.window < self.block or self.window % self.block:
            raise CalibrationError(f"window {self.window} is not a multiple of the block size {self.block}")
        if not 1 <= self.sinks < self.block:
            raise CalibrationError(f"sinks {self.sinks} is not between 1 and {self.block - 1}")

    @property
    def first(self):
        """The first eligible position: the smallest t with a(t) > s."""
        return self.window + self.block - 1

    def frontier(self, t):
        """a(t) for a tensor of positions."""
        return self.block * torch.div((t - self.window + 1).clamp(min=0), self.block, rounding_mode="floor")

    def groups(self, length):
        """How many groups of rows (the last may be short) a sequence of that length has from `first` on."""
        return max(0, -(-(length - self.first) // self.block))


@dataclasses.dataclass
class Near:
    """P0 for all rows: o [Hq, T, d]; and for eligible rows [Hq, E] what the controller reads."""
    o: torch.Tensor
    lse: torch.Tensor
    sink: torch.Tensor      # log of the sinks' share of P0
    entropy: torch.Tensor   # of P0's distribution


def pack(rows, kv_heads, groups, block):
    """Eligible rows [Hq, E, d] -> [groups, Hkv, g * block, d], padded with zeros at the end."""
    heads, length, dim = rows.shape
    rows = torch.nn.functional.pad(rows, (0, 0, 0, groups * block - length))
    rows = rows.view(kv_heads, heads // kv_heads, groups, block, dim)
    return rows.permute(2, 0, 1, 3, 4).reshape(groups, kv_heads, -1, dim)


def unpack(packed, heads, block, length):
    """The inverse of pack: [groups, Hkv, g * block, *] -> [Hq, E, *]."""
    groups, kv_heads = packed.shape[:2]
    rest = packed.shape[3:]
    rows = packed.reshape(groups, kv_heads, heads // kv_heads, block, *rest)
    rows = rows.permute(1, 2, 0, 3, *range(4, 4 + len(rest)))
    return rows.reshape(heads, groups * block, *rest)[:, :length]


def near_keys(x, geometry, groups):
    """Keys or values [Hkv, T, d] -> each group's window and the sinks [groups, Hkv, window + block - 1 + s, d]."""
    g, width = geometry, geometry.window + geometry.block - 1
    kv_heads, length, dim = x.shape
    need = g.block * groups + width
    padded = torch.nn.functional.pad(x[:, g.block:], (0, 0, 0, max(0, need - (length - g.block))))
    windows = padded.unfold(1, width, g.block)[:, :groups].permute(1, 0, 3, 2)
    return torch.cat([windows, x[:, :g.sinks].expand(groups, kv_heads, g.sinks, dim)], 2)


def near_mask(geometry, group, dtype):
    """Additive mask of one group's rows: row r reads window keys 0..window - 1 + r and all sinks."""
    g, width = geometry, geometry.window + geometry.block - 1
    later = torch.arange(width)[None] > (g.window - 1 + torch.arange(g.block))[:, None]
    mask = torch.zeros(g.block, width + g.sinks, dtype=dtype)
    mask[:, :width].masked_fill_(later, -math.inf)
    return mask.repeat(group, 1)


def near(q, k, v, geometry, scalars=True):
    """P0. Its lse, sink share and entropy carry no gradient. scalars=False: only o and lse are computed."""
    heads, length, dim = q.shape
    kv_heads, first, scale = k.shape[0], geometry.first, 1 / math.sqrt(dim)
    if length <= first:
        empty = q.new_zeros(heads, 0, dtype=torch.float32)
        return Near(attend_causal(q, k, v)[0], empty, empty, empty)
    groups = geometry.groups(length)
    begin = attend_causal(q[:, :first], k[:, :first], v[:, :first])[0]
    rows = pack(q[:, first:], kv_heads, groups, geometry.block)
    keys, mask = near_keys(k, geometry, groups), near_mask(geometry, heads // kv_heads, torch.float32)

    def open_(x):
        return unpack(x, heads, geometry.block, length - first)

    packed, lse = attend(rows, keys, near_keys(v, geometry, groups), mask=mask)
    o, lse = torch.cat([begin, open_(packed)], 1), open_(lse)
    if not scalars:
        return Near(o, lse, lse, lse)
    with torch.no_grad():
        mean_key = open_(attend(rows.detach(), keys.detach(), keys.detach(), mask=mask)[0])
        far_q = q[:, first:].detach()
        entropy = lse - (far_q.to(lse.dtype) * mean_key.to(lse.dtype)).sum(-1) * scale
        sinks = k[:, :geometry.sinks].detach().repeat_interleave(heads // kv_heads, 0)
        score = torch.bmm(far_q.to(lse.dtype), sinks.to(lse.dtype).transpose(1, 2)) * scale
        return Near(o, lse, score.logsumexp(-1) - lse, entropy)


class FeatureMap(torch.nn.Module):
    """Hedgehog: phi(x) = [softmax(W x) ; softmax(-W x)] after RoPE, one W per query head and one per KV head."""

    def __init__(self, heads, kv_heads, dim):
        super().__init__()
        self.w_q = torch.nn.Parameter(torch.eye(dim).repeat(heads, 1, 1))
        self.w_k = torch.nn.Parameter(torch.eye(dim).repeat(kv_heads, 1, 1))
        self.log_gain = torch.nn.Parameter(torch.full((heads,), -5.0))
        self.kappa = torch.nn.Parameter(torch.ones(heads))

    @staticmethod
    def features(x, w):
        """x [heads, T, d] -> [heads, T, 2 d]; rows of w are outputs."""
        y = torch.matmul(x.to(w.dtype), w.transpose(1, 2))
        return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)

    def query(self, q):
        return self.features(q, self.w_q)

    def key(self, k):
        return self.features(k, self.w_k)


class EluMap(torch.nn.Module):
    """phi(x) = elu(x) + 1; only gain and kappa are learned."""

    def __init__(self, heads, kv_heads, dim):
        super().__init__()
        self.log_gain = torch.nn.Parameter(torch.full((heads,), -5.0))
        self.kappa = torch.nn.Parameter(torch.ones(heads))

    def query(self, q):
        return torch.nn.functional.elu(q.to(self.kappa.dtype)) + 1

    key = query


MAPS = {"hedgehog": FeatureMap, "elu1": EluMap}


def linear_states(phi, k, v, geometry, groups):
    """The state each group reads: sum of phi(k) [v ; 1]^T over [s, a), [groups, Hkv, f, d + 1]."""
    block = geometry.block
    features = phi.key(k[:, :groups * block])
    # no in-place write: the sinks belong to P0
    features = torch.cat([torch.zeros_like(features[:, :geometry.sinks]), features[:, geometry.sinks:]], 1)
    kv_heads, _, f = features.shape
    values = v[:, :groups * block].to(features.dtype)
    values = torch.cat([values, values.new_ones(kv_heads, groups * block, 1)], -1)
    sums = torch.matmul(features.view(kv_heads, groups, block, f).transpose(-1, -2),
                        values.view(kv_heads, groups, block, -1))
    return sums.cumsum(1).transpose(0, 1)


def linear_far(phi, q, k, v, lse_near, geometry):
    """Kernel far part of the eligible rows -> value [Hq, E, d], odds = lse_far - lse_P0 [Hq, E]."""
    heads, length, dim = q.shape
    first, kv_heads = geometry.first, k.shape[0]
    groups = geometry.groups(length)
    states = linear_states(phi, k, v, geometry, groups)
    rows = pack(phi.query(q[:, first:]), kv_heads, groups, geometry.block)
    both = unpack(torch.matmul(rows, states), heads, geometry.block, length - first)
    mass = both[..., dim].clamp(min=1e-30)
    odds = mass.log() + phi.log_gain[:, None] + (phi.kappa[:, None] - 1) * lse_near
    return both[..., :dim] / mass[..., None], odds


def merge_far(o_near, value, odds):
    """Log-sum-exp merge of P0 with a far partial whose log odds against P0 are given."""
    o_near = o_near.to(value.dtype)
    return o_near + odds.sigmoid()[..., None] * (value - o_near)


def squared_error(a, b, kv_heads):
    """Summed over the query group and its dimensions: [Hq, E, d] twice -> [Hkv, E]."""
    difference = (a.float() - b.float()).pow(2).sum(-1)
    return difference.view(kv_heads, -1, difference.shape[-1]).sum(1)
