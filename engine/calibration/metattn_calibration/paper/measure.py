"""Loss, cost and routing of a model on held-out text, cut as `metattn eval --context T` cuts it."""

import math

import torch
import torch.nn.functional as F

from .. import dirichlet
from ..controller import first_argmax
from .mechanisms import COSTS, read_costs

AT_ONCE = 64  # windows


def windows(ids, length):
    """Consecutive whole windows [N, T]; each predicts its own tokens from the second on."""
    count = len(ids) // length
    return ids[:count * length].view(count, length)


def mixed(mean, eta):
    """Rows that get all three mechanisms: U >= eta. eta 0 mixes every row, 1 none."""
    if eta <= 0 or eta >= 1:
        return torch.full(mean.shape[:-1], eta <= 0)
    return dirichlet.uncertainty(mean) >= eta


def gate(eta):
    """A function of the posterior mean [*, 3]: itself where a row is mixed, else 1 for the most probable mechanism."""
    def decide(mean):
        hard = F.one_hot(first_argmax(mean.log()), mean.shape[-1]).to(mean.dtype)
        return torch.where(mixed(mean, eta)[..., None], mean, hard)

    return decide


def routing_sums(mean, weights, eta, reads):
    """One layer's rows, summed -> float64 [9]: see `NAMES`."""
    uncertain = mixed(mean, eta).double()  # of the mean as the forward pass has it
    mean, weights, paper = mean.double(), weights.double(), torch.tensor(COSTS, dtype=torch.float64)
    read = uncertain + (1 - uncertain) * (weights * reads).sum(-1)
    rows = [weights @ paper, mean @ paper, (mean * reads).sum(-1), read, dirichlet.uncertainty(mean), uncertain]
    return torch.cat([weights, torch.stack(rows, -1)], -1).sum((0, 1))


# share: of the mechanisms in the outputs; cost: what the paper projects for those; expected_cost: for the posterior mean;
# expected_read: the same with what is really read over dense; read: of the rows as routed, a mixed row counted as full.
NAMES = ("full", "linear", "local", "cost", "expected_cost", "expected_read", "read", "entropy", "mixture")


@torch.no_grad()
def evaluate(model, cut, eta=0.0):
    """-> dictionary of means over all predictions (loss) and over all rows and layers (routing)."""
    setting = model.setting
    reads = read_costs(setting.length, setting.window, setting.hidden // setting.heads)
    loss, sums = 0.0, torch.zeros(len(NAMES), dtype=torch.float64)
    for begin in range(0, len(cut), AT_ONCE):
        ids = cut[begin:begin + AT_ONCE]
        out = model.forward(ids, gate(eta))
        wrong = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss += wrong.double().sum().item()
        for mean, weights in zip(out.mean, out.weights):
            sums += routing_sums(mean, weights, eta, reads)
    predictions = len(cut) * (setting.length - 1)
    found = {"nll": loss / predictions, "perplexity": math.exp(loss / predictions), "predictions": predictions}
    if model.link is not None:
        found.update(eta=eta, **dict(zip(NAMES, (sums / (len(cut) * setting.length * setting.layers)).tolist())))
    return found


@torch.no_grad()
def mix(model, cut):
    """Posterior mean per layer and mechanism [layers, 3]: the calibration mix of controller.json."""
    parts = [torch.stack([m.double().mean((0, 1)) for m in model.forward(cut[i:i + AT_ONCE]).mean]) * len(cut[i:i + AT_ONCE])
             for i in range(0, len(cut), AT_ONCE)]
    return sum(parts) / len(cut)
