"""metattn-calibrate report."""

import dataclasses
import json
import pathlib

from .. import checkpoint, data, evaluate, export, rows
from ..errors import CalibrationError
from ..job import Job
from ..model import Model
from ..run import Run
from . import ablations, curve, markdown, measure, pass_keys, plots, quality, reliability, seeds, training
from .store import Store, digest, write_json

PARTS = ("quality", "curve", "pass_keys", "uncertainty", "ablations", "training")
KEPT = ".measured"


@dataclasses.dataclass
class Sizes:
    """How much of everything; --quick: as little as shows that all works."""
    lengths: tuple = (4096, 8000)
    excerpts: int = 10        # of each text and length
    curve_length: int = 4096
    curve_excerpts: int = 3
    trials: int = 50
    key_lengths: tuple = (1024, 2048, 4096, 8000)
    uncertainty_texts: int = 6
    row_texts: int = 24
    steps: int = 300
    ablation_length: int = 4096
    ablation_excerpts: int = 3


QUICK = Sizes((700, 900), 2, 700, 1, 1, (700,), 2, 2, 20, 700, 1)


def add_arguments(sub):
    sub.add_argument("--from", dest="again", metavar="REPORT.JSON", help="write Markdown and plots again, measure nothing")
    sub.add_argument("--model")
    sub.add_argument("--controller", metavar="DIR")
    sub.add_argument("--engine", metavar="PATH/metattn", help="the engine's binary: quality, curve and pass keys are its figures")
    sub.add_argument("--text", nargs="+", default=[], metavar="FILE[:FROM-TO]", help="held-out text: not used in calibration")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    sub.add_argument("--also", nargs="+", default=[], metavar="DIR|JSON",
                     help="controllers of other seeds, or their report.json on the same windows: their loss and the spread")
    sub.add_argument("--calibration-text", nargs="+", default=[], metavar="FILE[:FROM-TO]",
                     help="what ablations are trained on; without it there are none")
    sub.add_argument("--docs", default="auto", help="as in train, for the ablations")
    sub.add_argument("--training", metavar="DIR", help="the training's log.jsonl; default: CONTROLLER/.training")
    sub.add_argument("--training-output", metavar="FILE", help="what train printed: for peak memory where the log has none")
    sub.add_argument("--forms", nargs="+", default=["pass key", "vault"], choices=pass_keys.FORMS,
                     help="vault is never trained on")
    sub.add_argument("--engine-options", default="", help="flags for every call of the engine, in one word: '--threads 2'")
    sub.add_argument("--note", nargs="+", default=[], dest="notes", metavar="TEXT", help="what a reader must know; a line each")
    sub.add_argument("--quick", action="store_true", help="as little as shows that everything works")
    sub.add_argument("--quiet", action="store_true")
    for field in dataclasses.fields(Sizes):
        many = isinstance(field.default, tuple)
        sub.add_argument("--" + field.name.replace("_", "-"), type=int, nargs="+" if many else None,
                         help=f"default {' '.join(map(str, field.default)) if many else field.default}")
    sub.set_defaults(run=run)


def sizes_of(args):
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Sizes)}
    changed = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    bad = next((k for k, v in changed.items() if min(v if isinstance(v, tuple) else (v,)) < 1), None)
    if bad:
        raise CalibrationError(f"--{bad.replace('_', '-')}: at least 1")
    return dataclasses.replace(QUICK if args.quick else Sizes(), **changed)


class Session:
    """What the parts need, made when first asked for: a checkpoint takes seconds and gigabytes that the engine's parts spare."""

    def __init__(self, args):
        self.args, self.sizes = args, sizes_of(args)
        self.kept = pathlib.Path(args.out) / KEPT
        self.store, self.controller = Store(self.kept), measure.Controller(args.controller)
        self.training = args.training or self.controller.directory / ".training"
        self._loaded = self._engine = self._model = None

    @property
    def engine(self):
        if self._engine is None:
            if not self.args.engine:
                raise CalibrationError("--engine is needed for the parts quality, curve and pass_keys")
            self._engine = measure.Engine(self.args.engine, self.args.model, self.store, self.args.engine_options.split(),
                                          self.args.quiet)
        return self._engine

    @property
    def loaded(self):
        self._loaded = self._loaded or checkpoint.load(self.args.model)
        return self._loaded

    @property
    def model(self):
        self._model = self._model or Model(self.loaded)
        return self._model

    def texts(self, length, count):
        return measure.excerpts(self.args.text, length, count, self.kept / "texts")

    def held_out(self, length):
        """The texts as Python reads them; all must have `length` tokens."""
        found = data.sources(self.loaded.tokenizer, self.args.text, "none")
        short = next((s for s in found if len(s.ids) < length), None)
        if short:
            raise CalibrationError(f"--text {short.name}: {len(short.ids)} tokens, {length} are needed")
        return found

    def job(self, found, held=()):
        retrofit, policy, _ = export.read(self.controller.directory, self.loaded.config)
        state = Run(self.kept / "run", {"seed": 1}, {}, quiet=True)  # its estimate of the time left is of training
        return Job(state, self.model, self.loaded.tokenizer, found, list(held), retrofit), policy

    @property
    def share(self):
        return self.controller.description["training"].get("share", 0.17)


def measure_quality(s):
    lengths, count = s.sizes.lengths, s.sizes.excerpts
    others = seeds.read(s.args.also, about(s), lengths, count)  # found out now if one cannot be used
    texts = {n: s.texts(n, count) for n in lengths}
    found = quality.measure(s.engine, s.controller, texts, lengths)
    if others:
        mine = seeds.entry(s.controller, {n: rows["mean"] for n, rows in found["lengths"].items()})
        found["seeds"] = seeds.compare(s.engine, mine, others, texts, lengths)
    return found


def measure_curve(s):
    """On every k-th of the windows that quality has where the lengths agree: their dense runs are known."""
    length, count = s.sizes.curve_length, s.sizes.curve_excerpts
    texts = s.texts(length, s.sizes.excerpts if length in s.sizes.lengths else count)
    texts = {name: pieces[::max(1, len(pieces) // count)][:count] for name, pieces in texts.items()}
    return curve.measure(s.engine, s.controller, texts, length)


def measure_pass_keys(s):
    source = max(s.held_out(1), key=lambda t: len(t.ids))
    plan = s.args.forms, s.sizes.key_lengths, s.sizes.trials
    return {**pass_keys.measure(s.engine, s.controller, (s.loaded.tokenizer, source), plan), "haystack": source.name}


def measure_uncertainty(s):
    lengths = tuple(dict.fromkeys(min(n, max(s.sizes.lengths)) for n in rows.LENGTHS))
    key = ["uncertainty", s.controller.digest, s.args.text, s.sizes.uncertainty_texts, lengths]

    def measured():
        job, policy = s.job(s.held_out(max(lengths) + 1))
        return reliability.measure(job, policy, s.training, s.sizes.uncertainty_texts, s.share, lengths)

    return s.store.get(key, measured)


def measure_ablations(s):
    if not s.args.calibration_text:
        return None
    sizes = s.sizes
    key = ["ablation", s.controller.digest, s.args.text, s.args.calibration_text, s.args.docs, sizes.row_texts, sizes.steps,
           sizes.ablation_length, sizes.ablation_excerpts]
    found, held = data.hold_out(data.sources(s.loaded.tokenizer, s.args.calibration_text, s.args.docs))
    job, policy = s.job(found, held)
    lengths = tuple(dict.fromkeys(min(n, max(sizes.lengths)) for n in rows.LENGTHS))
    bench = ablations.Bench(job, s.controller.description, rows.collect(job, sizes.row_texts, lengths),
                            reliability.sensitivities(job, s.training), s.share, sizes.steps, sizes.ablation_length,
                            s.held_out(sizes.ablation_length), sizes.ablation_excerpts)
    return ablations.measure(bench, policy, s.store, key)


def measure_training(s):
    return training.measure(s.controller.description, s.training, s.args.training_output)


MEASURES = {"quality": measure_quality, "curve": measure_curve, "pass_keys": measure_pass_keys,
            "uncertainty": measure_uncertainty, "ablations": measure_ablations, "training": measure_training}


def about(s):
    d = s.controller.description
    return {"model": pathlib.Path(s.args.model).name, "controller": s.controller.directory.resolve().name,
            "fingerprint": d["base_model"]["fingerprint"], "controller_digest": s.controller.digest,
            "window": d["window"], "sinks": d["sinks"], "eta": d["eta"],
            "engine": s.engine.version if s.args.engine else "not used",
            "texts": [data.named_text(t)[0] for t in s.args.text],
            "text_digests": [digest(data.named_text(t)[1]) for t in s.args.text]}


def publish(report, out):
    """report.md and the plots, from the JSON alone."""
    drawn = plots.draw(report, out)
    (out / "report.md").write_text(markdown.write(report), encoding="utf-8")
    return drawn


def again(args, out):
    try:
        report = json.loads(pathlib.Path(args.again).read_text())
        write_json(out / "report.json", report)
        return publish(report, out)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{args.again}: not a report ({type(error).__name__}: {error})") from error


def run(args):
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    plots.pyplot()  # found out now that it is missing, not after the measurements
    if args.again:
        drawn = again(args, out)
    else:
        missing = next((f"--{n}" for n in ("model", "controller", "text") if not getattr(args, n)), None)
        if missing:
            raise CalibrationError(f"{missing} is needed (or --from)")
        session = Session(args)
        report = {"format": "metattn-report", "version": 1, "about": about(session),
                  "mix": session.controller.description["mix"], "notes": args.notes}
        previous = out / "report.json"  # parts of this controller that are not asked for now are kept
        if previous.exists():
            old = json.loads(previous.read_text())
            if old.get("about") == report["about"]:
                report.update({part: old[part] for part in PARTS if part in old})
        for part in (p for p in PARTS if p in args.parts):
            report[part] = MEASURES[part](session)
            write_json(previous, report)
            drawn = publish(report, out)
    print(json.dumps({"out": str(out), "plots": drawn}))
