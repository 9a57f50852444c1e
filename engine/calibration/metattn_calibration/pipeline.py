"""A whole calibration: sensitivities -> feature maps -> controllers -> end-to-end tuning -> offsets -> directory.

Step counts are fixed numbers times a scale, never a clock's, so a run can be repeated. REFERENCE_MINUTES is what scale 1
takes on two unloaded cores with AMX.
"""

import dataclasses
import hashlib
import pathlib
import time

import torch

from . import checkpoint, data, export, prompts, rows, sensitivity, settle, train_controllers, train_maps, tune
from .attention import attend_causal
from .controller import Policy
from .errors import CalibrationError
from .job import Job
from .mechanisms import FULL, Geometry
from .model import Model
from .retrofit import Retrofit
from .run import Run

REFERENCE_MINUTES = 100
UNFINISHED = ".training"


@dataclasses.dataclass
class Plan:
    """How much of everything; scaled() keeps the least that gives a valid controller."""
    sensitivity_texts: int = 8
    map_steps: int = 80
    row_texts: int = 36
    controller_steps: int = 400
    tune_steps: int = 216
    settle_rounds: int = 1

    def scaled(self, scale):
        least = {"sensitivity_texts": 2, "map_steps": 2, "row_texts": 3, "controller_steps": 40, "tune_steps": 2,
                 "settle_rounds": 1}
        often = {f.name: max(least[f.name], round(getattr(self, f.name) * scale)) for f in dataclasses.fields(self)}
        often["sensitivity_texts"] = min(often["sensitivity_texts"], 16)
        often["controller_steps"] = max(often["controller_steps"], min(300, self.controller_steps))
        return Plan(**{**often, "settle_rounds": max(1, min(3, often["settle_rounds"]))})


@dataclasses.dataclass
class Options:
    model: str
    texts: list
    out: str
    docs: str = "auto"
    seed: int = 1
    share: float = 0.17
    eta: float = 1.0      # no gate: rows that it takes from the tilt cost more than they give (README)
    steps_scale: float = 1.0
    feature_map: str = "hedgehog"
    max_length: int = 8192
    start: str = None     # a controller directory to go on from: only tuning and offsets
    price: float = None   # of full rows when tuning begins; None: what the run of `start` ended with
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    quiet: bool = False


def limited(lengths, most):
    """Training lengths for a model or a wish with fewer positions: longer ones become the most there is."""
    return tuple(min(n, most) for n in lengths)


def nominal_seconds(plan):
    """Per stage, measured on the reference machine (maps: two steps a text, scaled to sixteen); only for the time left."""
    return {"sensitivity": 14.0 * plan.sensitivity_texts, "maps": 15.0 * plan.map_steps, "rows": 7.0 * plan.row_texts,
            "controllers": 0.2 * plan.controller_steps, "tune": 26.0 * plan.tune_steps,
            "settle": 400.0 * plan.settle_rounds}


def tuning_only(plan, scale):
    """The same time, all of it for tuning: what --start-from does. scale 0: none, only offsets are chosen."""
    seconds = nominal_seconds(plan)
    step = seconds["tune"] / plan.tune_steps
    steps = round((sum(seconds.values()) - seconds["settle"]) / step) if scale else 0
    return dataclasses.replace(plan, sensitivity_texts=0, map_steps=0, row_texts=0, controller_steps=0, tune_steps=steps)


def train(options):
    began = time.monotonic()
    if not 0 < options.share < 1:
        raise CalibrationError(f"--share {options.share} is not between 0 and 1")
    loaded = checkpoint.load(options.model)
    found, held = data.hold_out(data.sources(loaded.tokenizer, options.texts, options.docs))
    plan = Plan().scaled(options.steps_scale)
    if options.steps_scale == 0 and not options.start:
        raise CalibrationError("--minutes 0 only chooses offsets and needs --start-from, the controller that gets them")
    started = export.read(options.start, loaded.config) if options.start else None
    if started:
        plan, options = tuning_only(plan, options.steps_scale), dataclasses.replace(options, geometry=started[0].geometry,
                                                               feature_map=started[0].feature_map)
    most = min(options.max_length, loaded.config.max_positions)
    if most < 2 * options.geometry.first:
        raise CalibrationError(f"--max-length {most}: with window {options.geometry.window} nothing is left to route")
    settings = {"fingerprint": checkpoint.fingerprint(loaded.config, loaded.tensors), "texts": data.facts(found),
                "plan": dataclasses.asdict(plan), "seed": options.seed, "share": options.share, "eta": options.eta,
                "feature_map": options.feature_map, "max_length": most,
                "geometry": dataclasses.asdict(options.geometry), "threads": torch.get_num_threads()}
    if started:
        settings["start"] = _digest(options.start)
        settings["price"] = started[2]["training"].get("price", tune.PRICE_START)
    if options.price is not None:
        settings["price"] = options.price
    run = Run(pathlib.Path(options.out) / UNFINISHED, settings, nominal_seconds(plan), options.quiet)
    model = Model(loaded)
    loaded.tensors = {n: t for n, t in loaded.tensors.items() if t.dim() == 1}  # all that the fingerprint needs
    retrofit = started[0] if started else Retrofit.fresh(loaded.config, options.geometry, options.feature_map, options.seed)
    job = Job(run, model, loaded.tokenizer, found, held, retrofit)
    start = Policy.neutral(loaded.config.layers, loaded.config.kv_heads, options.eta)
    if started:
        start.offsets = started[1].offsets
        price = _go_on(job, start.offsets, plan, options.share, most)
    else:
        tilt, price = _train_retrofit(job, options, plan, most)
        start.offsets[..., FULL] = -tilt
    rounded = Retrofit.fresh(loaded.config, options.geometry, options.feature_map)
    export.fill(rounded, export.tensors_of(retrofit), "trained controller")
    policy, mix, figures = settle.settle(dataclasses.replace(job, retrofit=rounded), options.share, start,
                                         tuple(dict.fromkeys(limited(settle.LENGTHS, most))), plan.settle_rounds)
    training = {k: settings[k] for k in ("texts", "plan", "seed", "share", "threads", "start") if k in settings}
    if plan.tune_steps > 0 or "price" in started[2]["training"]:  # a price that nothing was tuned at says nothing
        training["price"] = round(price, 5)
    training.update(figures=figures, dtype=str(model.dtype).replace("torch.", ""))
    export.write(options.out, export.tensors_of(rounded), export.describe(loaded, rounded, policy, mix, training, most))
    run.log("done", seconds=round(time.monotonic() - began), **figures)
    return figures


def _train_retrofit(job, options, plan, most):
    """Stages 1 to 4, each skipped as far as its saved state goes. -> the tilt on full that tuning had, its last price."""
    config, controllers = job.model.config, job.retrofit.controllers
    sensitivities = sensitivity.measure(job, plan.sensitivity_texts, min(sensitivity.LENGTH, most))
    train_maps.train(job, plan.map_steps, limited(train_maps.LENGTHS, most))
    state = job.run.load("controllers")
    if state:
        job.run.skip("rows")
        for controller, values in zip(controllers, state["controllers"]):
            controller.load_state_dict(values)
        tilt = state["tilt"]
    else:
        sample = rows.collect(job, plan.row_texts, limited(rows.LENGTHS, most))
        tilt = train_controllers.train(job, sample, sensitivities, plan.controller_steps, options.share)
        del sample
    offsets = torch.zeros(config.layers, config.kv_heads, 3)
    offsets[..., FULL] = -tilt
    return tilt, tune.train(job, offsets, plan.tune_steps, options.share, limited(tune.LENGTHS, most))


@torch.no_grad()
def _standardise(job, length):
    """A controller that was read has its inputs' scale folded in; training needs it apart (one step size for all)."""
    ids = prompts.mixed(job.tokenizer, job.found, length, job.run.rng("standardise"))[1].ids

    def attention(layer, x, q, k, v):
        job.retrofit.controllers[layer].unfold(x.float())
        return attend_causal(q, k, v)[0]

    job.model.hidden(ids, attention)


def _go_on(job, offsets, plan, share, most):
    """Stage 4 from a controller that exists. -> the last price."""
    if plan.tune_steps > 0:
        _standardise(job, min(tune.LENGTHS[0], most))
    return tune.train(job, offsets, plan.tune_steps, share, limited(tune.LENGTHS, most))


def _digest(directory):
    """Tells which controller a run went on from."""
    return hashlib.sha256((pathlib.Path(directory) / "controller.safetensors").read_bytes()).hexdigest()[:16]
