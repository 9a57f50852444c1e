"""Pass keys: is the whole value the greedy answer, by depth, context and form of the prompt; in the engine."""

from .. import evaluate


def trial(engine, controllers, tokenizer, source, cell):
    """cell: (form, length, number). -> {"dense": bool, "routed": bool, "depth": share of the text before the needle}."""
    form, length, number = cell
    needle, prompt = evaluate.pass_key_trial(tokenizer, source, form, length, number)
    text = tokenizer.decode(prompt.ids[:-prompt.answer].tolist())
    out = {"depth": needle.depth}
    for name, controller in controllers.items():
        found = engine.answer(text, prompt.answer, controller)
        out[name] = found["text"].strip() == needle.value
        if found["routing"] and controller:
            out["full"] = found["routing"].get("full")
    return out


def measure(engine, controller, subject, plan):
    """subject: (tokenizer, source of the haystack). plan: (forms, lengths, trials); trial by trial over all cells, so that
    a run that is stopped has every cell. -> {form: {length: counts}}"""
    (tokenizer, source), (forms, lengths, trials) = subject, plan
    cells = {(form, length): [] for form in forms for length in lengths}
    for number in range(trials):
        engine.note(f"pass keys: trial {number + 1} of {trials}")
        for (form, length), done in cells.items():
            done.append(trial(engine, {"dense": None, "routed": controller}, tokenizer, source, (form, length, number)))
    return {"trials": trials, "cells": [{"form": form, "held_out": form in evaluate.prompts.HELD_OUT, "length": length,
                                         **counts(done)} for (form, length), done in cells.items()]}


def counts(done):
    dense, routed = (sum(t[name] for t in done) for name in ("dense", "routed"))
    depths = {}
    for t in done:
        d = depths.setdefault(f"{t['depth']:.2f}", {"trials": 0, "dense": 0, "routed": 0})
        d["trials"] += 1
        d["dense"] += t["dense"]
        d["routed"] += t["routed"]
    full = [t["full"] for t in done if t.get("full") is not None]
    return {"trials": len(done), "dense": dense, "routed": routed, "both": sum(t["dense"] and t["routed"] for t in done),
            "full": sum(full) / len(full) if full else None, "depths": dict(sorted(depths.items()))}
