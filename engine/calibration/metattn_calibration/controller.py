"""The meta-controller of one layer: features local to a KV head's query group -> Dirichlet concentrations -> decision."""

import dataclasses

import torch
import torch.nn.functional as F

from . import dirichlet
from .mechanisms import FULL, MECHANISMS

CLIP = 8.0  # of standardised scalars
EPSILON = 0.1
K = len(MECHANISMS)
STEP_COLUMNS = 32  # that share a step in `byte_weights`: a group of Q8_0


def scalar_count(group):
    return 1 + 4 * group


def scalars(near, odds, first, kv_heads):
    """[Hkv, E, 1 + 4 g]: log n, then per query head lse_P0, log sink share, entropy of P0, log odds of linear."""
    heads, rows = odds.shape
    parts = torch.stack([near.lse, near.sink, near.entropy, odds.detach().to(near.lse.dtype)], -1)
    parts = parts.view(kv_heads, heads // kv_heads, rows, 4).transpose(1, 2).reshape(kv_heads, rows, -1)
    n = torch.arange(first + 1, first + rows + 1, dtype=parts.dtype)
    return torch.cat([n.log().expand(kv_heads, rows)[..., None], parts], -1)


def energies(p, x, s):
    """Of one controller, or of several stacked along leading axes: x [*, N, D], s [*, Hkv, N, S] -> [*, Hkv, N, 3]."""
    x = (x.to(p["x"].dtype) - p["x_mean"].unsqueeze(-2)) * p["x_scale"].unsqueeze(-2)
    u = (s.to(x.dtype) - p["scalar_mean"].unsqueeze(-2)) * p["scalar_scale"].unsqueeze(-2)
    u = u.clamp(-CLIP, CLIP)
    hidden = torch.matmul(x, p["x"].transpose(-1, -2)).unsqueeze(-3)
    hidden = hidden + torch.matmul(u, p["scalars"].transpose(-1, -2)) + p["bias"].unsqueeze(-2)
    skip = torch.matmul(x, p["x_skip"].flatten(-3, -2).transpose(-1, -2))
    skip = skip.unflatten(-1, p["x_skip"].shape[-3:-1]).transpose(-2, -3)
    e = torch.matmul(F.gelu(hidden, approximate="tanh"), p["out"].transpose(-1, -2)) + p["out_bias"].unsqueeze(-2)
    return e + skip + torch.matmul(u, p["scalars_skip"].transpose(-1, -2))


def concentrations(p, x, s, epsilon=EPSILON):
    """softplus of the energies, which see."""
    return F.softplus(energies(p, x, s)) + epsilon


def unrounded(w):
    return w


class Controller(torch.nn.Module):
    """e_h = out_h gelu(W_x x + W_s,h u_h + b_h) + out_bias_h + skip_x,h x + skip_s,h u_h; W_x is shared by KV heads.

    In training x is standardised (x_mean, x_scale); `folded` moves that into the weights, as the engine wants it.
    count: of scalars, where they are not those of `scalars`.
    """

    def __init__(self, hidden, group, kv_heads, width=32, count=None):
        super().__init__()
        n = scalar_count(group) if count is None else count

        def uniform(*shape):
            bound = 1 / (hidden + n) ** 0.5
            return torch.nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        def zeros(*shape):
            return torch.nn.Parameter(torch.zeros(*shape))

        self.x, self.scalars, self.bias = uniform(width, hidden), uniform(kv_heads, width, n), zeros(kv_heads, width)
        self.out, self.out_bias = zeros(kv_heads, K, width), zeros(kv_heads, K)
        self.x_skip, self.scalars_skip = zeros(kv_heads, K, hidden), zeros(kv_heads, K, n)
        for name, size in (("x_mean", (hidden,)), ("scalar_mean", (kv_heads, n))):
            self.register_buffer(name, torch.zeros(size))
        for name, size in (("x_scale", (hidden,)), ("scalar_scale", (kv_heads, n))):
            self.register_buffer(name, torch.ones(size))

    def standardise(self, x, s):
        """Sets means and scales from rows: x [N, D], s [Hkv, N, S]."""
        self.x_mean.copy_(x.mean(0)), self.x_scale.copy_(1 / (x.std(0) + 1e-3))
        self.scalar_mean.copy_(s.mean(1)), self.scalar_scale.copy_(1 / (s.std(1) + 1e-3))

    @torch.no_grad()
    def unfold(self, x):
        """The inverse of `folded` for a controller that was read: x [N, D] enters standardised again, the results stay."""
        self.bias += self.x @ x.mean(0)
        self.out_bias += self.x_skip @ x.mean(0)
        self.x_mean.copy_(x.mean(0)), self.x_scale.copy_(1 / (x.std(0) + 1e-3))
        self.x /= self.x_scale
        self.x_skip /= self.x_scale

    @torch.no_grad()
    def lean(self, slope):
        """Takes `slope` a unit of log n above its training mean off full's energy."""
        self.scalars_skip[:, FULL, 0] -= slope / self.scalar_scale[:, 0]

    def values(self):
        """Name -> tensor of everything that `concentrations` reads."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, x, s):
        """x [N, D], s [Hkv, N, S] -> concentrations [Hkv, N, 3]."""
        return concentrations(self.values(), x, s)

    @torch.no_grad()
    def folded(self, rounding=unrounded):
        """The controller's tensors in the engine's form: x enters unstandardised. float32.

        rounding: of what x is multiplied with; the biases take its mean effect back.
        """
        x, skip = (rounding(w * self.x_scale) for w in (self.x, self.x_skip))
        return {
            "x": x, "x_skip": skip, "bias": self.bias - x @ self.x_mean, "out_bias": self.out_bias - skip @ self.x_mean,
            **{n: getattr(self, n).clone() for n in ("scalar_mean", "scalar_scale", "scalars", "out", "scalars_skip")},
        }


def byte_weights(w):
    """[*, D] to the nearest integer in -127..127 times a power of two, one for each 32 columns.

    Exact in bfloat16, which the file holds, and in Q8_0, which the engine reads for every token: half the bytes.
    """
    columns = w.shape[-1]
    groups = F.pad(w, (0, -columns % STEP_COLUMNS)).unflatten(-1, (-1, STEP_COLUMNS))
    largest = groups.abs().amax(-1, keepdim=True).double()
    # 2^-14 is the least normal scale of Q8_0 (float16)
    step = torch.exp2((largest / 127).clamp(min=2.0 ** -14).log2().ceil()).to(w.dtype)
    return ((groups / step).round() * step).flatten(-2)[..., :columns]


@dataclasses.dataclass
class Policy:
    """How concentrations become a decision. offsets [layers, Hkv, 3]."""
    offsets: torch.Tensor
    eta: float = 0.98

    @classmethod
    def neutral(cls, layers, kv_heads, eta=0.98):
        return cls(torch.zeros(layers, kv_heads, K), eta)

    def decide(self, layer, b):
        """b [Hkv, N, 3] -> mechanism per row [Hkv, N]; U >= eta -> full."""
        mean = b / b.sum(-1, keepdim=True)
        score = mean.log() + self.offsets[layer][:, None].to(mean.dtype)
        choice = first_argmax(score)
        return torch.where(dirichlet.uncertainty(mean) >= self.eta, torch.full_like(choice, FULL), choice)


def first_argmax(score):
    """argmax over the last axis, ties to the lower index (torch.argmax promises nothing about ties)."""
    best = score.amax(-1, keepdim=True)
    index = torch.arange(score.shape[-1])
    return torch.where(score == best, index, score.shape[-1]).amin(-1)
