"""Does U mean anything: calibration of the posterior mean, and what is left when uncertain rows are set aside.

Rows come from held-out text with the labels that training uses: a mechanism is adequate when its predicted harm is at most
delta. The event is "argmax m is the cheapest adequate mechanism", with linear before local before full, as in training.
"""

import json
import pathlib

import torch

from .. import data, dirichlet, prompts, rows, sensitivity, train_controllers
from ..mechanisms import FULL, LINEAR, LOCAL

BINS = 15
COVERAGES = [i / 20 for i in range(1, 21)]


def plain_text(tokenizer, found, length, rng):
    return "text", prompts.plain(data.excerpt(rng.choice(found), length, rng))


def log_lines(directory):
    """Of a training run; [] where there is none."""
    file = pathlib.Path(directory) / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def sensitivities(job, training, texts=2):
    """The training's own if its log is there, else measured on the job's texts."""
    for line in log_lines(training):
        if line["stage"] == "sensitivity":
            return (torch.tensor(line["text"]) + torch.tensor(line["retrieval"])) / 2
    return sensitivity.measure(job, texts, min(sensitivity.LENGTH, job.model.config.max_positions))


def delta_of(training, sample, harm_of, share):
    """What a row may cost: the training's, else by the same rule from this sample."""
    for line in log_lines(training):
        if line["stage"] == "controllers":
            return line["delta"]
    return train_controllers.threshold(sample, harm_of, min(0.9, share * 1.2))


def cheapest(part, harm_of, delta):
    """-> mechanism [Hkv, N] that training calls right, harms [Hkv, N, 3]."""
    linear, local = train_controllers.harms(part, harm_of)
    choice = torch.where(linear <= delta, LINEAR, torch.where(local <= delta, LOCAL, FULL))
    return choice, torch.stack([torch.zeros_like(linear), linear, local], -1)


@torch.no_grad()
def outcomes(retrofit, policy, sample, harm_of, delta):
    """Over all layers: max m, U, whether argmax m is right, harm of what the policy decides; flat tensors; shares of labels."""
    kept, parts, labels = (sample.weights == 1).nonzero()[:, 0], [], torch.zeros(3)
    for layer, part in enumerate(sample.layers):
        b = retrofit.controllers[layer](part.x[kept], part.scalars[:, kept])
        mean = b / b.sum(-1, keepdim=True)
        right, harm = (t[:, kept] for t in cheapest(part, harm_of[layer], delta))
        decided = policy.decide(layer, b)[..., None]
        labels += torch.bincount(right.flatten(), minlength=3)
        parts.append([t.flatten() for t in (mean.amax(-1), dirichlet.uncertainty(mean), (mean.argmax(-1) == right).float(),
                                            harm.gather(-1, decided)[..., 0])])
    return [torch.cat(p) for p in zip(*parts)], (labels / labels.sum()).tolist()


def calibration(confidence, right):
    """Bins of equal width -> (mean confidence, frequency, rows) each, and the expected calibration error."""
    index, bins, error = (confidence * BINS).long().clamp(max=BINS - 1), [], 0.0
    for i in range(BINS):
        inside = index == i
        count = int(inside.sum())
        if count:
            mean, frequency = confidence[inside].mean().item(), right[inside].mean().item()
            bins.append({"confidence": mean, "frequency": frequency, "rows": count})
            error += abs(mean - frequency) * count / len(confidence)
    return bins, error


def risk_coverage(uncertainty, risk):
    """Rows in order of U, the surest first: mean risk of those covered."""
    order = uncertainty.argsort(stable=True)
    means = risk[order].double().cumsum(0) / torch.arange(1, len(risk) + 1)
    at = [max(1, round(c * len(risk))) - 1 for c in COVERAGES]
    return {"coverage": COVERAGES, "risk": [means[i].item() for i in at], "area": means.mean().item()}


def measure(job, policy, training, texts, share, lengths=rows.LENGTHS):
    """job: with the shipped retrofit, found = held-out texts."""
    sample = rows.collect(job, texts, lengths, plain_text)
    harm_of = sensitivities(job, training)
    delta = delta_of(training, sample, harm_of, share)
    (confidence, u, right, harm), labels = outcomes(job.retrofit, policy, sample, harm_of, delta)
    bins, error = calibration(confidence, right)
    wrong = 1 - right
    best = risk_coverage(wrong, wrong)["area"]  # whoever knows which rows are wrong
    return {"rows": len(confidence), "texts": texts, "accuracy": right.mean().item(), "ece": error, "bins": bins,
            "mean_confidence": confidence.mean().item(), "labels": labels, "delta": delta,
            "most_confidence": most_confidence(), "mean_uncertainty": u.mean().item(),
            "gated": (u >= policy.eta).float().mean().item(),
            "wrong": {**risk_coverage(u, wrong), "best_area": best, "random_area": wrong.mean().item()},
            "harm": risk_coverage(u, harm)}


def most_confidence():
    """The largest max m that the training objective asks for (b = prior + evidence, all of it on linear)."""
    prior = dirichlet.cost_prior(train_controllers.COSTS)
    return ((prior.max() + train_controllers.EVIDENCE) / (prior.sum() + train_controllers.EVIDENCE)).item()
