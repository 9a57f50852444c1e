"""Stage 5: offsets for a wanted share of full rows, closed loop, on text that nothing was trained on.

A tilt on full and its slope in log n are found such that every length has the wanted share: with a tilt alone long texts
get more than short ones. The slope goes into the controllers' skip of log n, the tilt into the offsets. Candidates for an
offset on local are compared by their loss, if anything is routed there at all. Decisions are those of the rounded
controller, eta's fail-safe included.
"""

import torch

from . import data, dirichlet
from .controller import Policy
from .mechanisms import FULL, LOCAL
from .retrofit import RoutedAttention

LENGTHS = (4096, 8192)
LOCAL_OFFSETS = (0.0, -1.0)
PASSES = 4            # at most, for a candidate
CLOSE = 0.003         # every length's share this near the wanted one: no further pass
LEAST_LOCAL = 0.005   # a smaller share of local rows leaves an offset on local nothing to win
GAIN = 1.5  # energy for a unit of score: the slope acts on energies, whose slope in the score is some .4 to 1


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
        self.margins.append(margin.masked_fill(gated, float("inf")).flatten())
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


def changes(found, share, first, centre):
    """What full's score must lose so that every length has `share` of full rows -> (everywhere, a unit of log n more than
    `centre`); for one length the latter is 0. first: the first eligible position."""
    points = []
    for length, (_, margins) in found.items():
        if not torch.isfinite(margins).any():  # the gate has every row
            continue
        n = torch.arange(first + 1, length + 1, dtype=torch.float64)
        points.append((n.log().mean().item() - centre, _quantile(margins, 1 - share)))
    if not points:
        return 0.0, 0.0
    x, y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    spread = sum((p[0] - x) ** 2 for p in points)
    slope = sum((p[0] - x) * (p[1] - y) for p in points) / spread if spread > 0 else 0.0
    return y - slope * x, slope


def lean(retrofit, slope):
    """Every full row costs `slope` more energy a unit of log n above the training mean."""
    for controller in retrofit.controllers:
        controller.lean(slope)


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
    """job.retrofit: the rounded one, whose slope is changed; start: Policy with the tilt of tuning.
    -> Policy, shares [layers, Hkv, 3], facts."""
    retrofit, config = job.retrofit, job.model.config
    chosen = texts(job.run, job.held, lengths, rounds)
    base = [job.model.nll(job.model.dense(ids), ids) for _, ids in chosen]
    centre = torch.stack([c.scalar_mean[:, 0].mean() for c in retrofit.controllers]).mean().item()
    best, tilt, slope = None, -start.offsets[0, 0, FULL].item(), 0.0
    for number, local in enumerate(candidates):
        for attempt in range(PASSES):
            policy = Policy.neutral(config.layers, config.kv_heads, start.eta)
            policy.offsets[..., FULL], policy.offsets[..., LOCAL] = -tilt, local
            loss, found, mix = closed_loop(job.model, retrofit, policy, chosen, base)
            shares = {str(length): round(full, 4) for length, (full, _) in found.items()}
            facts = {"loss": round(loss, 5), "tilt": round(tilt, 5), "slope": round(slope, 5), "local_offset": local,
                     "gated_share": round(gated_share(found), 4), "full_share": shares}
            job.run.log("settle", mix=mix.mean((0, 1)).tolist(), **facts)
            job.run.progress("settle", number * PASSES + attempt + 1, len(candidates) * PASSES,
                             f"tilt {tilt:.3f}, slope {slope:.3f}, local {local}: loss {loss:+.4f}, full {shares}")
            if attempt == PASSES - 1 or all(abs(full - share) <= CLOSE for full, _ in found.values()):
                break
            more, steeper = changes(found, share, retrofit.geometry.first, centre)
            lean(retrofit, GAIN * steeper)
            tilt, slope = tilt + more, slope + GAIN * steeper
        # the last pass of a candidate counts; a candidate that misses the share by much must not win by it
        score = loss * (1 + 2 * max(0.0, max(full for full, _ in found.values()) / share - 1))
        if best is None or score < best[0]:
            best = (score, policy, mix, facts, slope)
        if mix[..., LOCAL].mean() < LEAST_LOCAL:
            break
    lean(retrofit, best[4] - slope)
    return best[1:4]
