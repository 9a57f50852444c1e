"""`metattn-calibrate paper`: train three models, measure, export, report; then, where it is given, run the engine."""

import dataclasses
import hashlib
import json
import pathlib
import time

import torch

from .. import data
from ..errors import CalibrationError
from ..export import replace
from ..run import Run
from . import engine, export, measure, report, train
from .model import Setting

LINKS = {"elbo": "softplus", "baseline": "softmax", "dense": None}
STEPS_A_MINUTE = 100   # of three models together, two idle cores
SECONDS = {"elbo": 0.25, "baseline": 0.2, "dense": 0.15}  # a step, for the time left
ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PIECES, HELD = 20, 0.1   # the last tenth of each twentieth of the text is held out: documentation changes along the way
WINDOWS = 1000           # held-out windows at most
UNFINISHED = ".training"


@dataclasses.dataclass
class Options:
    out: str
    text: str = None     # FILE[:FROM-TO]; None: the machine's documentation
    minutes: float = 8.0
    steps: int = None    # instead of minutes
    seed: int = 1
    beta_elbo: float = train.BETA_ELBO
    engine: str = None
    device: str = "ref"
    etas: tuple = ETAS
    windows: int = WINDOWS
    setting: Setting = Setting()
    quiet: bool = False


def load_text(argument):
    """-> name, kind, text."""
    if argument:
        name, text = data.named_text(argument)
        return name, "text", text
    text = data.documentation()
    if not text:
        raise CalibrationError("no documentation is installed here; name a text with --text FILE")
    return "documentation of this machine", "documentation", text


def split(text):
    """-> training text, held-out text."""
    size = -(-len(text) // PIECES)
    pieces = [text[i:i + size] for i in range(0, len(text), size)]
    cuts = [int(len(piece) * (1 - HELD)) for piece in pieces]
    return "".join(p[:c] for p, c in zip(pieces, cuts)), "".join(p[c:] for p, c in zip(pieces, cuts))


def tokens(text):
    return torch.tensor(list(text.encode()), dtype=torch.int64)


def run(options):
    """-> results, as in report.json."""
    setting, out = options.setting, pathlib.Path(options.out)
    name, kind, text = load_text(options.text)
    training, held = split(text)
    held = held.encode()[:options.windows * setting.length].decode(errors="ignore")  # no half character at the end
    ids, cut = tokens(training), measure.windows(tokens(held), setting.length)
    if len(ids) < 100 * setting.length or not len(cut):
        raise CalibrationError(f"{name}: {len(ids)} bytes are too few to train on")
    steps = max(1, round(options.minutes * STEPS_A_MINUTE)) if options.steps is None else options.steps
    if steps < 1:
        raise CalibrationError(f"--steps {steps}: at least one is needed")
    facts = {"steps": steps, "batch": train.BATCH, "seed": options.seed, "beta_elbo": options.beta_elbo,
             "threads": torch.get_num_threads()}
    settings = {**facts, "setting": dataclasses.asdict(setting), "text": hashlib.sha256(text.encode()).hexdigest()[:16]}
    job = Run(out / UNFINISHED, settings, {n: s * steps for n, s in SECONDS.items()}, options.quiet)
    replace(out / "held-out.txt", held.encode())
    results = {"setting": dataclasses.asdict(setting), "training": facts,
               "text": {"name": name, "kind": kind, "train": len(ids), "windows": len(cut), "sha256": settings["text"]}}
    for key, link in LINKS.items():
        began = time.monotonic()
        model = train.train(job, key, link, train.Task(setting, ids, steps, options.beta_elbo))
        job.log(key, seconds=round(time.monotonic() - began))
        shares = measure.mix(model, cut) if link else None
        export.write(model, out / key, shares, {"model": key, **facts, "text": results["text"]})
        results[key] = measured(export.read(out / key), cut, options.etas)
    if options.engine:
        results["engine"] = in_engine(options, results, cut)
    save(out, results)
    return results


def measured(model, cut, etas):
    """Of the model as exported."""
    if model.link is None:
        return measure.evaluate(model, cut)
    return {"sweep": [measure.evaluate(model, cut, eta) for eta in etas]}


def in_engine(options, results, cut):
    """The engine's figures beside Python's, one entry a model and eta."""
    out, entries = pathlib.Path(options.out), []
    for key, link in LINKS.items():
        for ours in results[key]["sweep"] if link else [results[key]]:
            more = ("--eta", f"{ours['eta']:g}") if link else ()
            theirs = engine.evaluate(options.engine, out / key, out / "held-out.txt", options.setting.length, more,
                                     options.device)
            entries.append({"model": key, "device": options.device, "python": ours, "engine": theirs})
    return entries


def save(out, results):
    replace(out / "report.json", (json.dumps(results, indent=1) + "\n").encode())
    replace(out / "report.md", report.markdown(results).encode())
