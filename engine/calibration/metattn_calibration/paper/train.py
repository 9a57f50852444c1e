"""Training of the paper's models: loss of the text, and for the Dirichlet model KL to the cost-aware prior."""

import dataclasses
import math

import torch
import torch.nn.functional as F

from .. import dirichlet
from .mechanisms import PRIOR
from .model import PaperModel

# Weight of the KL (mean over tokens, summed over layers) against the loss per token, both in nats. 1 is the ELBO with one
# latent a token and layer; see the README for what other weights give.
BETA_ELBO = 0.03
BATCH = 64
RATE, DECAY, WARM_UP, CLIP = 3e-3, 0.1, 0.05, 1.0


def prior_kl(concentrations):
    """KL[Dir(b) || Dir(PRIOR)], mean over tokens, summed over layers.

    In double: near b_full = eps = .01 digamma is about -100 and lgamma's terms cancel. psi'(.01) = 10^4 does no harm:
    b - eps = softplus(e) stands before it and d b / d e = sigmoid(e) behind, so |d KL / d e| stays of order 1.
    """
    prior = torch.tensor(PRIOR, dtype=torch.float64)
    return sum(dirichlet.kl(b.double(), prior).mean() for b in concentrations)


def objective(model, batch, beta_elbo):
    """batch [B, T + 1]. -> (what is minimised, loss of the text, KL or 0)."""
    out = model.forward(batch[:, :-1])
    loss = F.cross_entropy(out.logits.flatten(0, 1), batch[:, 1:].flatten())
    if model.link != "softplus":
        return loss, loss, 0.0
    kl = prior_kl(out.concentrations)
    return loss + beta_elbo * kl, loss, kl.detach()


def excerpts(ids, length, count, generator):
    """`count` runs of length + 1 tokens from places drawn at random."""
    begin = torch.randint(0, len(ids) - length, (count, 1), generator=generator)
    return ids[begin + torch.arange(length + 1)]


def rate(step, steps):
    """Linear warm-up, then a cosine to a tenth."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return RATE * (step + 1) / warm
    return RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


@dataclasses.dataclass
class Task:
    """What every model of a run has in common."""
    setting: object
    ids: torch.Tensor
    steps: int
    beta_elbo: float = BETA_ELBO


def train(run, name, link, task):
    """One model, resumed where `run` has a state of it. Every model sees the same batches."""
    steps, model = task.steps, PaperModel.fresh(task.setting, link, run.settings["seed"])
    parameters = model.parameters()
    matrices, vectors = [[p for p in parameters if (p.dim() > 1) == wide] for wide in (True, False)]
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=RATE, betas=(0.9, 0.99))
    state, begin = run.load(name), 0
    if state:
        begin = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"]):
                parameter.copy_(value)
    for step in range(begin, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        batch = excerpts(task.ids, task.setting.length, BATCH, run.generator("paper", step))
        total, loss, kl = objective(model, batch, task.beta_elbo)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        if step % 50 == 49 or step + 1 == steps:
            run.log(name, step=step + 1, loss=round(loss.item(), 4), kl=round(float(kl), 4))
        run.save(name, step + 1, steps, {"parameters": [p.detach() for p in parameters], "optimiser": optimiser.state_dict()})
        run.progress(name, step + 1, steps, f"loss {loss.item():.3f}")
    return model
