"""Stage 5: offsets for a wanted share of full rows, closed loop, on text that nothing was trained on.

One tilt on full is found such that no length has more than the wanted share; candidates for an offset on local are
compared by their loss. Decisions are those of the rounded controller, eta's fail-safe included.
"""

import torch

from . import data, dirichlet
from .controller import Policy
from .mechanisms import FULL, LOCAL
from .retrofit import RoutedAttention

LENGTHS = (4096, 8192)
LOCAL_OFFSETS = (0.0, -1.0)
PASSES = 2


class Recorder(RoutedAttention):
    """Routed attention that remembers by how much each row prefers full (rows the gate sends to full: infinitely)."""

    def __init__(self, retrofit, policy):
        super().__init__(retrofit, policy)
        self.margins = []

    def _controlled(self, layer, rows, x, q, k, v):
        b = self.retrofit.controllers[layer](x[self.retrofit.geometry.first:], rows.scalars)
        mean = b / b.sum(-1, keepdim=True)
        score = mean.log() + self.policy.offsets[layer][:, None]
        margin = score[..., FULL] - score[..., FULL + 1:].amax(-1)
        gated = dirichlet.uncertainty(mean) >= self.policy.eta
        self.margins.append(margin.masked_fill(gated, float("inf"))[:, ::5].flatten())
        return self.policy.decide(layer, b)


def texts(run, held, lengths, rounds):
    """[(length, ids)], each source once at each length and round."""
    out = []
    for number in range(rounds):
        for i, source in enumerate(held):
            for length in lengths:
                out.append((length, data.excerpt(source, length, run.rng("settle", number, i, length))))
    return out


@torch.no_grad()
def closed_loop(model, retrofit, policy, chosen, base):
    """-> loss against the unmodified model, {length: (share, margins)}, shares [layers, Hkv, 3]."""
    total, tokens, by_length, counts = 0.0, 0, {}, 0
    for (length, ids), dense in zip(chosen, base):
        routed = Recorder(retrofit, policy)
        total += (model.nll(model.hidden(ids, routed), ids) - dense).sum().item()
        tokens += len(ids) - 1
        by_length.setdefault(length, []).append(routed)
        counts = counts + routed.counts
    found = {}
    for length, all_ in by_length.items():
        full = sum(r.counts[..., FULL].sum().item() for r in all_) / sum(r.counts.sum().item() for r in all_)
        found[length] = (full, torch.cat([m for r in all_ for m in r.margins]))
    return total / tokens, found, counts / counts.sum(-1, keepdim=True)


def tilt_change(found, share):
    """How much to take off full's score (negative: to add) so that the length with the most full rows has `share`."""
    return max(_quantile(margins, 1 - share) for _, margins in found.values())


def gated_share(found):
    """Largest share over the lengths of rows that the gate sends to full whatever the tilt."""
    return max(torch.isinf(margins).float().mean().item() for _, margins in found.values())


def _quantile(values, q):
    """The finite value below which a part q of all values lies."""
    ordered = values.sort().values
    index = min(int(q * len(ordered)), int(torch.isfinite(ordered).sum()) - 1)
    return ordered[max(0, index)].item()


@torch.no_grad()
def settle(job, share, start, lengths=LENGTHS, rounds=1, candidates=LOCAL_OFFSETS):
    """job.retrofit: the rounded one; start: Policy with the tilt of tuning. -> Policy, shares [layers, Hkv, 3], facts."""
    stage, run, model, config = "settle", job.run, job.model, job.model.config
    chosen = texts(run, job.held, lengths, rounds)
    base = [model.nll(model.dense(ids), ids) for _, ids in chosen]
    best, steps = None, len(candidates) * PASSES
    tilt, eta = -start.offsets[0, 0, FULL].item(), start.eta
    for number, local in enumerate(candidates):
        for attempt in range(PASSES):
            policy = Policy.neutral(config.layers, config.kv_heads, eta)
            policy.offsets[..., FULL], policy.offsets[..., LOCAL] = -tilt, local
            loss, found, mix = closed_loop(model, job.retrofit, policy, chosen, base)
            shares = {length: full for length, (full, _) in found.items()}
            run.log(stage, tilt=tilt, local=local, loss=loss, shares=shares, mix=mix.mean((0, 1)).tolist())
            run.progress(stage, number * PASSES + attempt + 1, steps,
                         f"tilt {tilt:.3f}, local {local}: loss {loss:+.4f}, full {shares}")
            # the last pass of a candidate counts; a candidate that misses the share by much must not win by it
            if attempt == PASSES - 1:
                score = loss * (1 + 2 * max(0.0, max(shares.values()) / share - 1))
                if best is None or score < best[0]:
                    best = (score, policy, mix, {"loss": round(loss, 5), "tilt": round(tilt, 5), "local_offset": local,
                                                 "gated_share": round(gated_share(found), 4),
                                                 "full_share": {str(n): round(s, 4) for n, s in shares.items()}})
            else:
                tilt += tilt_change(found, share)
    return best[1:]
