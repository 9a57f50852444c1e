"""Closed-loop evaluation: loss against the unmodified model, share of full rows, pass keys found."""

import dataclasses
import random

import torch

from . import prompts
from .model import full_attention
from .retrofit import RoutedAttention

BLOCK = 512  # tokens over which the paired standard error is taken


@dataclasses.dataclass
class Subject:
    model: object
    tokenizer: object
    retrofit: object
    policy: object

    def routed(self, decide=None):
        return RoutedAttention(self.retrofit, self.policy, decide)


@torch.no_grad()
def losses(model, attention, ids):
    return model.nll(model.hidden(ids, attention), ids)


def summary(differences):
    """Mean and standard error over blocks of BLOCK tokens of the given per-token differences."""
    whole = torch.cat(differences)
    blocks = torch.cat([d[:len(d) // BLOCK * BLOCK].view(-1, BLOCK).mean(1) for d in differences])
    error = (blocks.std() / len(blocks) ** 0.5).item() if len(blocks) > 1 else float("nan")
    return {"delta": round(whole.mean().item(), 5), "error": round(error, 5), "tokens": len(whole)}


def excerpts(source, length, count):
    """Evenly spaced over the source, so that the same arguments give the same tokens."""
    room = len(source.ids) - length
    if room < 0:
        return []
    return [source.ids[b:b + length] for b in (room * i // max(1, count - 1) for i in range(min(count, 1 + room)))]


def on_texts(subject, found, length, count, decide=None, known=None):
    """-> {text name: delta, error, share}, "all" included. known: a dictionary that keeps the unmodified model's losses from
    one call to the next, for several subjects of one model on the same texts."""
    known = {} if known is None else known
    model, everything, out, all_counts, dense_sum = subject.model, [], {}, 0, 0.0
    for source in found:
        differences, counts = [], 0
        for number, ids in enumerate(excerpts(source, length, count)):
            key = source.name, length, count, number
            if key not in known:
                known[key] = losses(model, full_attention, ids)
            dense = known[key]
            routed = subject.routed(decide)
            differences.append(losses(model, routed, ids) - dense)
            counts, dense_sum = counts + routed.counts, dense_sum + dense.sum().item()
        if differences:
            out[source.name] = {**summary(differences), "share": shares(counts)}
            everything += differences
            all_counts = all_counts + counts
    if everything:
        out["all"] = {**summary(everything), "share": shares(all_counts),
                      "dense_nll": round(dense_sum / sum(map(len, everything)), 4)}
    return out


def shares(counts):
    total = counts.sum((0, 1))
    return dict(zip(("full", "linear", "local"), [round(s, 4) for s in (total / total.sum().clamp(min=1)).tolist()]))


@torch.no_grad()
def answers(model, attention, prompt):
    """Would greedy decoding give the whole answer?"""
    n = prompt.answer
    hidden = model.hidden(prompt.ids, attention)[-n - 1:-1]
    return bool((model.logits(hidden).argmax(-1) == prompt.ids[-n:]).all())


def pass_key_trial(tokenizer, source, form, length, trial):
    """-> Needle, Prompt of one trial; ten depths in an order in which a few trials are spread too."""
    rng = random.Random(f"{form}/{length}/{trial}")
    needle = prompts.Needle(form, prompts.digits(5, rng), (trial * 7 % 10 + 0.5) / 10)
    return needle, prompts.pass_key(tokenizer, source, length, rng, needle)


def on_pass_keys(subject, source, length, form, trials):
    """-> counts of the unmodified and the routed model over depths spread evenly."""
    model, out, counts = subject.model, {"trials": trials, "dense": 0, "routed": 0, "both": 0}, 0
    for trial in range(trials):
        _, prompt = pass_key_trial(subject.tokenizer, source, form, length, trial)
        routed = subject.routed()
        dense_ok, routed_ok = answers(model, full_attention, prompt), answers(model, routed, prompt)
        out["dense"] += dense_ok
        out["routed"] += routed_ok
        out["both"] += dense_ok and routed_ok
        counts = counts + routed.counts
    out["share"] = shares(counts)
    return out


def evaluate(subject, found, lengths, count, pass_keys=None):
    """pass_keys: (forms, lengths, trials) or None. -> everything as one dictionary."""
    out = {"texts": {length: on_texts(subject, found, length, count) for length in lengths}}
    if pass_keys:
        forms, key_lengths, trials = pass_keys
        source = max(found, key=lambda s: len(s.ids))
        out["pass_keys"] = {form: {length: on_pass_keys(subject, source, length, form, trials)
                                   for length in key_lengths} for form in forms}
    return out
