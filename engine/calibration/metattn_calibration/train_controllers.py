"""Stage 3b: controllers on sampled rows, layer-locally, by the exact ELBO.

Soft labels, linear as the default: adequate_k = sigmoid(log(delta / harm_k) / tau) with harm_k = sensitivity * squared
error; w_linear = A_linear, w_local = (1 - A_linear) A_local, w_full = the rest.
"""

import math

import torch

from . import dirichlet
from .controller import concentrations
from .mechanisms import FULL
from .train_maps import schedule

EVIDENCE = 12.0            # N_eff, observations that one row is worth
COSTS = (1.0, 0.07, 0.07)  # of the prior, relative to full at long contexts
TAU = 0.7
BATCH = 512
RATE, DECAY = 2e-3, 1e-2


def harms(rows, sensitivity):
    """Predicted nats of linear and local per row: [Hkv, N] each."""
    return [(e * sensitivity[:, None]).clamp(min=1e-30) for e in (rows.linear, rows.local)]


def threshold(sample, sensitivity, share):
    """delta: what a row may cost, such that `share` of the text rows are served by neither linear nor local."""
    worst = torch.cat([torch.minimum(*harms(rows, s))[:, sample.weights == 1].flatten()
                       for rows, s in zip(sample.layers, sensitivity)])
    kept = worst[torch.randperm(len(worst), generator=torch.Generator().manual_seed(0))[:1_000_000]]
    return torch.quantile(kept, 1 - share).item()


def labels(rows, sensitivity, delta):
    linear, local = (torch.sigmoid((math.log(delta) - h.log()) / TAU) for h in harms(rows, sensitivity))
    return torch.stack([(1 - linear) * (1 - local), linear, (1 - linear) * local], -1)


def train_stacked(controllers, sample, targets, steps, generator, prior):
    """All layers at once (their losses add, Adam treats each entry alone): few large operations instead of many small
    ones. targets [layers, Hkv, N, 3]. Yields the objective of each step, a mean over rows, heads and layers."""
    layers, weights = sample.layers, sample.weights
    for controller, rows in zip(controllers, layers):
        controller.standardise(rows.x.float(), rows.scalars)
    stacked = {n: torch.stack([c.values()[n].detach() for c in controllers]) for n in controllers[0].values()}
    names = [n for n, _ in controllers[0].named_parameters()]
    for name in names:
        stacked[name].requires_grad_(True)
    optimiser = torch.optim.AdamW([stacked[n] for n in names], lr=RATE, weight_decay=DECAY)
    x, scalars = torch.stack([r.x for r in layers]), torch.stack([r.scalars for r in layers])
    for step in range(steps):
        picked = torch.randint(0, len(weights), (BATCH,), generator=generator)
        b, w = concentrations(stacked, x[:, picked], scalars[:, :, picked]), weights[picked]
        rows = dirichlet.negative_elbo(b, targets[:, :, picked], prior, EVIDENCE)
        loss = (rows.mean(1) * w).sum() / w.sum()
        for group in optimiser.param_groups:
            group["lr"] = RATE * schedule(step, steps, 20)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield loss.item() / len(layers)
    with torch.no_grad():
        for number, controller in enumerate(controllers):
            for name, parameter in controller.named_parameters():
                parameter.copy_(stacked[name][number])


@torch.no_grad()
def tilt_for(controllers, sample, share):
    """What to take off log m_full such that argmax sends `share` of the sampled text rows to full."""
    text, margins = (sample.weights == 1).nonzero()[:, 0], []
    for controller, rows in zip(controllers, sample.layers):
        score = controller(rows.x[text], rows.scalars[:, text]).log()
        margins.append((score[..., FULL] - score[..., FULL + 1:].amax(-1)).flatten())
    ordered = torch.cat(margins).sort().values
    return ordered[min(len(ordered) - 1, int((1 - share) * len(ordered)))].item()


def train(job, sample, sensitivity, steps, share, cost_weight=1.0):
    """-> tilt_for of the result. cost_weight 0: the ablation without a prior on cost (a flat Dirichlet of the same strength)."""
    stage, run, prior = "controllers", job.run, dirichlet.cost_prior(COSTS, cost_weight)
    delta = threshold(sample, sensitivity, min(0.9, share * 1.2))
    targets = torch.stack([labels(rows, s, delta) for rows, s in zip(sample.layers, sensitivity)])
    objectives, controllers = [], job.retrofit.controllers
    for objective in train_stacked(controllers, sample, targets, steps, run.generator(stage), prior):
        objectives.append(objective)
        run.progress(stage, len(objectives), steps, f"objective {objective:.2f}")
    tilt = tilt_for(controllers, sample, share)
    run.log(stage, rows=len(sample.weights), delta=delta, tilt=tilt, objectives=objectives[::10],
            labels=targets.mean((0, 1, 2)).tolist())
    run.save(stage, 1, 1, {"controllers": [c.state_dict() for c in controllers], "tilt": tilt}, force=True)
    return tilt
