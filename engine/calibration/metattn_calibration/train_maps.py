"""Stage 2: feature maps, layer by layer against the frozen model's own activations (no backward through the model).

Per KV head: log(1 + squared error / mean squared error of local), so that the rows which no kernel can serve, and which
routing sends to full, do not dominate; plus the cross entropy of the far span's share of the attention mass.
"""

import math

import torch
import torch.nn.functional as F

from . import data, prompts
from .attention import attend_causal
from .mechanisms import linear_states, merge_far, near, pack

LENGTHS = (4096, 2048, 8192, 3072)  # served lengths from the start: the normaliser grows with the context
UPDATES = 16       # steps on one text's activations, each on other rows: the frozen model's pass costs as much as eight
ROWS_PER_GROUP = 16
RATE = {"w": 1e-2, "gain": 2e-2}
MASS_WEIGHT = 0.1
WARM_UP = 10


def optimiser_of(phi):
    matrices = [p for n, p in phi.named_parameters() if n.startswith("w_")]
    gains = [p for n, p in phi.named_parameters() if not n.startswith("w_")]
    groups = [{"params": gains, "base": RATE["gain"]}]
    if matrices:
        groups.append({"params": matrices, "base": RATE["w"]})
    return torch.optim.AdamW(groups, lr=RATE["w"], betas=(0.9, 0.98), weight_decay=0.0)


def schedule(step, steps, warm_up, floor=0.02):
    """Factor of the learning rate: linear warm-up, cosine to `floor`."""
    return min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * step / max(1, steps))))


class LayerTarget:
    """Full and local outputs of one layer on one text, packed by groups of rows."""

    def __init__(self, q, k, v, geometry):
        self.q, self.k, self.v, self.geometry = q, k, v, geometry
        self.kv_heads, self.groups, first = k.shape[0], geometry.groups(q.shape[1]), geometry.first
        self.full, lse = attend_causal(q, k, v)
        p0 = near(q, k, v, geometry, scalars=False)

        def packed(x):
            return pack(x[:, first:].float(), self.kv_heads, self.groups, geometry.block)

        self.rows_q, self.target, self.o_near = packed(q), packed(self.full), packed(p0.o)
        self.lse_near = packed(F.pad(p0.lse, (first, 0))[..., None])[..., 0]
        mass = 1 - (p0.lse - lse[:, first:]).exp().clamp(max=1)
        self.mass = packed(F.pad(mass, (first, 0))[..., None])[..., 0]
        self.valid = packed(torch.ones(q.shape[0], q.shape[1], 1))[..., 0]

    def loss(self, phi, kept):
        """kept: row numbers within a group. -> loss, error of linear relative to local's (a scalar tensor each)."""
        heads, block = self.q.shape[0], self.geometry.block
        group = heads // self.kv_heads
        kept = (torch.arange(group)[:, None] * block + kept).flatten()
        states = linear_states(phi, self.k, self.v, self.geometry, self.groups)
        rows = self._features(phi, self.rows_q[:, :, kept], group)
        both = torch.matmul(rows, states)
        value, mass = both[..., :-1], both[..., -1].clamp(min=1e-30)
        per_head = (1, self.kv_heads, group, 1)

        def spread(x):  # [Hq] -> one per packed row
            return x.view(per_head).expand(1, self.kv_heads, group, len(kept) // group).flatten(2)

        lse = self.lse_near[:, :, kept]
        odds = mass.log() + spread(phi.log_gain) + (spread(phi.kappa) - 1) * lse
        valid, o_near, target = self.valid[:, :, kept], self.o_near[:, :, kept], self.target[:, :, kept]
        error = (merge_far(o_near, value / mass[..., None], odds) - target).pow(2).sum(-1) * valid
        local = (o_near - target).pow(2).sum(-1) * valid
        scale = local.sum((0, 2)) / valid.sum((0, 2)) + 1e-12
        shaped = (torch.log1p(error / scale[:, None]) * valid).sum() / valid.sum()
        cross = F.binary_cross_entropy_with_logits(odds, self.mass[:, :, kept], reduction="none")
        return shaped + MASS_WEIGHT * (cross * valid).sum() / valid.sum(), (error.sum() / local.sum().clamp(min=1e-12)).detach()

    def _features(self, phi, packed, group):
        """phi of packed query rows: back to [Hq, *, d], the map, packed again."""
        groups, kv_heads, n, dim = packed.shape
        flat = packed.view(groups, kv_heads, group, n // group, dim).permute(1, 2, 0, 3, 4).reshape(kv_heads * group, -1, dim)
        out = phi.query(flat)
        return out.view(kv_heads, group, groups, n // group, -1).permute(2, 0, 1, 3, 4).reshape(groups, kv_heads, n, -1)


def text_for(tokenizer, found, length, rng):
    """Mostly running text; some retrieval prompts, whose rows need other keys."""
    if rng.random() < 0.2:
        return prompts.lookups(tokenizer, prompts.weighted(found, rng), length, rng).ids
    return data.excerpt(prompts.weighted(found, rng), length, rng)


def train(job, steps, lengths=LENGTHS):
    stage, run, retrofit = "maps", job.run, job.retrofit
    geometry, layers = retrofit.geometry, job.model.config.layers
    optimisers = [optimiser_of(phi) for phi in retrofit.maps]
    state = run.load(stage)
    begin = state["step"] if state else 0
    if state:
        for phi, values in zip(retrofit.maps, state["maps"]):
            phi.load_state_dict(values)
        for optimiser, values in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(values)
    for step in range(begin, steps):
        rng, generator = run.rng(stage, step), run.generator(stage, step)
        length = lengths[step % len(lengths)]
        ids, errors = text_for(job.tokenizer, job.found, length, rng), torch.zeros(layers)

        def attention(layer, x, q, k, v):
            target, phi, optimiser = LayerTarget(q, k, v, geometry), retrofit.maps[layer], optimisers[layer]
            for update in range(UPDATES):
                kept = torch.randperm(geometry.block, generator=generator)[:ROWS_PER_GROUP]
                with torch.enable_grad():
                    loss, error = target.loss(phi, kept)
                if update == 0:  # before anything is learned from this text
                    errors[layer] = error
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(phi.parameters(), 1.0)
                for group in optimiser.param_groups:
                    group["lr"] = group["base"] * schedule(step * UPDATES + update, steps * UPDATES, WARM_UP)
                optimiser.step()
            return target.full

        with torch.no_grad():
            job.model.hidden(ids, attention)
        run.log(stage, step=step, length=length, relative_error=errors.mean().item(), by_layer=errors.tolist())
        run.save(stage, step + 1, steps, {"maps": [m.state_dict() for m in retrofit.maps],
                                          "optimisers": [o.state_dict() for o in optimisers]})
        run.progress(stage, step + 1, steps, f"squared error {errors.mean():.3f} of local's at {length} tokens",
                     share=length * len(lengths) / sum(lengths) / steps)
