"""All stages on a tiny model: they improve what they should, repeat exactly, and resume exactly."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import GEOMETRY

from metattn_calibration import (data, export, pipeline, prompts, rows, run, sensitivity, settle, train_controllers,
                                 train_maps, tune)
from metattn_calibration.controller import Policy
from metattn_calibration.errors import CalibrationError
from metattn_calibration.job import Job
from metattn_calibration.mechanisms import FULL
from metattn_calibration.model import Model
from metattn_calibration.retrofit import Retrofit

LENGTHS = (192, 128)


@pytest.fixture
def job(tmp_path, loaded, text_file):
    found, held = data.hold_out(data.sources(loaded.tokenizer, [str(text_file)], "none"), 0.1)
    return Job(run.Run(tmp_path / "run", {"seed": 1}, {}, quiet=True), Model(loaded), loaded.tokenizer, found, held,
               Retrofit.fresh(loaded.config, GEOMETRY, seed=1, width=8))


def log_of(job, stage):
    lines = (job.run.directory / "log.jsonl").read_text().splitlines()
    return [v for v in map(json.loads, lines) if v["stage"] == stage]


def test_twenty_steps_bring_linear_closer_to_full(job):
    train_maps.train(job, 20, LENGTHS)
    errors = [v["relative_error"] for v in log_of(job, "maps")]
    assert len(errors) == 20
    assert sum(errors[-4:]) < 0.8 * sum(errors[:4])


def test_the_sampled_loss_is_the_loss_of_those_rows(job):
    """LayerTarget works on packed rows; the same numbers from the mechanisms' own functions."""
    from metattn_calibration.attention import attend_causal
    from metattn_calibration.retrofit import rows_of

    seen = []

    def attention(layer, x, q, k, v):
        target, phi = train_maps.LayerTarget(q, k, v, GEOMETRY), job.retrofit.maps[layer]
        _, relative = target.loss(phi, torch.arange(GEOMETRY.block))
        full, got, first = attend_causal(q, k, v)[0], rows_of(job.retrofit, layer, q, k, v), GEOMETRY.first
        linear, local = ((o.float() - full[:, first:].float()).pow(2).sum() for o in (got.o_linear, got.o_near[:, first:]))
        seen.append((relative.item(), (linear / local).item()))
        return full

    with torch.no_grad():
        job.model.hidden(job.found[0].ids[:150], attention)
    for got, expected in seen:
        assert abs(got - expected) < 0.02 * expected


def test_sensitivities_predict_the_loss_of_a_small_error(job, loaded):
    """Fisher's second-order divergence against the measured KL when every row of one head errs a little."""
    model, size = Model(loaded, torch.float32), 0.02
    ids, layer, head = job.found[0].ids[:160], 1, 0
    harm, squares = torch.zeros(2, 2), torch.zeros(2, 2)
    for seed in range(60):
        h, s = sensitivity.divergence(model, ids, torch.ones(160), GEOMETRY, torch.Generator().manual_seed(seed))
        harm, squares = harm + h, squares + s
    per_square = (harm / squares)[layer, head]
    noise = torch.zeros(loaded.config.heads, 160, loaded.config.head_dim)

    def disturbed(l, x, q, k, v):
        from metattn_calibration.attention import attend_causal
        from metattn_calibration.mechanisms import near

        o = attend_causal(q, k, v)[0]
        if l == layer:
            error = near(q, k, v, GEOMETRY, scalars=False).o - o
            noise[:loaded.config.group] = size * error[:loaded.config.group]
            o = o + noise
        return o

    with torch.no_grad():
        clean, wrong = (model.logits(h).log_softmax(-1) for h in (model.dense(ids), model.hidden(ids, disturbed)))
        measured = (clean.exp() * (clean - wrong)).sum(-1).sum()
    predicted = per_square * noise.pow(2).sum()
    assert 0.5 < predicted / measured < 2


def test_controllers_learn_their_labels(job):
    sample = rows.collect(job, 4, LENGTHS)
    target = torch.zeros(2, 2, len(sample.weights), 3)
    for layer, part in enumerate(sample.layers):  # which mechanism: from one scalar and one input
        best = torch.where(part.scalars[..., 1] > part.scalars[..., 1].median(), 1, 0)
        target[layer].scatter_(-1, best[..., None], 1.0)
    controllers, prior = job.retrofit.controllers, torch.tensor([0.6, 1.9, 2.0])
    objective = list(train_controllers.train_stacked(controllers, sample, target, 200, torch.Generator().manual_seed(1), prior))
    assert sum(objective[-10:]) < 0.7 * sum(objective[:10])
    with torch.no_grad():
        b = controllers[1](sample.layers[1].x, sample.layers[1].scalars)
    assert (b.argmax(-1) == target[1].argmax(-1)).float().mean() > 0.9  # rows at the very threshold may fall either way


def test_labels_prefer_linear_and_leave_full_the_rest(job):
    part = rows.LayerRows(None, None, torch.tensor([[1e-6, 1e3, 1e3, 1e-6]]), torch.tensor([[1e-6, 1e-6, 1e3, 1e3]]))
    w = train_controllers.labels(part, torch.ones(1), 1.0)[0]
    assert w.argmax(-1).tolist() == [1, 2, FULL, 1]
    assert torch.allclose(w.sum(-1), torch.ones(4))


def test_the_tilt_before_tuning_gives_the_wanted_share_of_the_sampled_rows(job):
    sample = rows.collect(job, 4, LENGTHS)
    tilt = train_controllers.train(job, sample, torch.ones(2, 2), 60, 0.2)
    policy, text, full = Policy.neutral(2, 2, eta=1.1), sample.weights == 1, []
    policy.offsets[..., FULL] = -tilt
    with torch.no_grad():
        for layer, part in enumerate(sample.layers):
            b = job.retrofit.controllers[layer](part.x[text], part.scalars[:, text])
            full.append((policy.decide(layer, b) == FULL).float().mean())
    assert abs(sum(full) / 2 - 0.2) < 0.02


def test_tuning_lowers_the_divergence_from_the_teacher(job):
    train_maps.train(job, 6, LENGTHS)
    sample = rows.collect(job, 4, LENGTHS)
    train_controllers.train(job, sample, torch.ones(2, 2), 60, 0.2)
    tune.train(job, torch.zeros(2, 2, 3), 20, 0.2, LENGTHS)
    steps = log_of(job, "tune")
    assert sum(s["kl"] for s in steps[-6:]) < sum(s["kl"] for s in steps[:6])


def test_the_price_of_full_follows_the_share_at_each_length(job):
    tune.train(job, torch.zeros(2, 2, 3), 8, 0.2, LENGTHS)
    expected = dict.fromkeys(LENGTHS, tune.PRICE_START)
    for step in log_of(job, "tune"):
        assert step["price"] == pytest.approx(expected[step["length"]])
        expected[step["length"]] = max(0.0, step["price"] + tune.price_step(step["step"], 8) * (step["full"] - 0.2))
    assert expected[LENGTHS[0]] != expected[LENGTHS[1]]


def test_prices_wait_for_the_controllers_and_move_faster_in_short_runs():
    assert [tune.price_step(step, 8) for step in (0, 1, 2, 7)] == [0, 0, 0.1, 0.1]
    assert [tune.price_step(step, 216) for step in (11, 12, 215)] == [0, 0.05, 0.05]
    assert tune.price_step(50, 144) == pytest.approx(0.075) and tune.price_step(300, 400) == 0.05


def test_the_gradient_of_the_divergence_is_that_of_autograd(loaded):
    model = Model(loaded, torch.float64)
    torch.manual_seed(0)
    teacher, student = torch.randn(9, 32).double(), torch.randn(9, 32).double().requires_grad_(True)
    weights = torch.rand(9).double() + 0.1
    value, gradient = tune.divergence(model, teacher, student.detach(), weights)
    log_t, log_s = (model.logits(h).log_softmax(-1) for h in (teacher, student))
    expected = ((log_t.exp() * (log_t - log_s)).sum(-1) * weights / weights.sum()).sum()
    expected.backward()
    assert abs(value - expected.item()) < 1e-12
    assert torch.allclose(gradient.double(), student.grad, atol=1e-6)


def test_rows_that_are_equal_are_left_out_of_the_divergence(loaded):
    model = Model(loaded, torch.float64)
    torch.manual_seed(0)
    teacher, student, weights = torch.randn(9, 32).double(), torch.randn(9, 32).double(), torch.rand(9).double() + 0.1
    student[:4] = teacher[:4]
    (value, gradient), (part, rest) = (tune.divergence(model, teacher, student, weights, first) for first in (0, 4))
    assert abs(value - part) < 1e-12 and torch.allclose(gradient, rest, atol=1e-9)
    assert (rest[:4] == 0).all() and (rest[4:] != 0).any()


def settled(job, eta):
    train_maps.train(job, 4, LENGTHS)
    train_controllers.train(job, rows.collect(job, 3, LENGTHS), torch.ones(2, 2), 60, 0.3)
    return settle.settle(job, 0.25, Policy.neutral(2, 2, eta), (128, 224), candidates=(0.0,))


def test_settling_reaches_the_wanted_share_at_every_length(job):
    _, mix, facts = settled(job, eta=1.1)
    assert list(facts["full_share"].values()) == pytest.approx([0.25, 0.25], abs=0.04)
    assert facts["gated_share"] == 0
    assert torch.allclose(mix.sum(-1), torch.ones(2, 2))


def test_settling_says_when_the_gate_alone_takes_more_than_the_share(job):
    _, _, facts = settled(job, eta=0.5)
    assert facts["gated_share"] > 0.9 and max(facts["full_share"].values()) > 0.9


def test_the_slope_of_the_best_candidate_is_what_the_controllers_keep(job):
    train_maps.train(job, 4, LENGTHS)
    train_controllers.train(job, rows.collect(job, 3, LENGTHS), torch.ones(2, 2), 60, 0.3)
    before = [c.scalars_skip[:, 0, 0].clone() for c in job.retrofit.controllers]
    _, _, facts = settle.settle(job, 0.25, Policy.neutral(2, 2, 1.0), (128, 224), candidates=(0.0, -1.0))
    for controller, skip in zip(job.retrofit.controllers, before):
        leaned = (skip - controller.scalars_skip[:, 0, 0]) * controller.scalar_scale[:, 0]
        assert leaned.tolist() == pytest.approx([facts["slope"]] * 2, abs=1e-4)


@pytest.mark.parametrize("share,local,passes", [
    (0.25, 0.0, [0.0]),                                             # met at once, nothing local: nothing to try
    (0.25, 0.1, [0.0, -1.0]),                                       # met at once, an offset on local may win
    (0.35, 0.0, [0.0] * settle.PASSES),                             # never met
    (0.35, 0.1, [0.0] * settle.PASSES + [-1.0] * settle.PASSES)])
def test_settling_makes_no_more_passes_than_it_needs(job, monkeypatch, share, local, passes):
    mix = torch.tensor([share, 1 - share - local, local]).expand(2, 2, 3)
    monkeypatch.setattr(settle, "closed_loop", lambda *_: (0.01, {n: (share, torch.linspace(-1, 1, 101)) for n in LENGTHS}, mix))
    settle.settle(job, 0.25, Policy.neutral(2, 2, 1.0), LENGTHS, candidates=(0.0, -1.0))
    assert [line["local_offset"] for line in log_of(job, "settle")] == passes


def test_changes_solve_for_tilt_and_slope():
    # margins of all rows lie at one value a length: what must go there is that value
    found = {n: (0.5, torch.full((50,), value)) for n, value in ((1000, 0.3), (2000, 0.7))}
    tilt, slope = settle.changes(found, 0.2, 99, 6.0)
    for length, value in ((1000, 0.3), (2000, 0.7)):
        centre = sum(math.log(n) for n in range(100, length + 1)) / (length - 99)
        assert tilt + slope * (centre - 6.0) == pytest.approx(value)
    assert settle.changes({1000: found[1000]}, 0.2, 99, 6.0) == (pytest.approx(0.3), 0.0)


@pytest.fixture
def options(model_directory, text_file, tmp_path):
    return pipeline.Options(str(model_directory), [str(text_file)], str(tmp_path / "out"), docs="none", share=0.2,
                            steps_scale=0.03, max_length=192, geometry=GEOMETRY, quiet=True)


def result(options):
    return [(pipeline.pathlib.Path(options.out) / f"controller.{e}").read_bytes() for e in ("safetensors", "json")]


def test_the_same_seed_gives_the_same_controller_and_another_seed_another(options, tmp_path, loaded):
    pipeline.train(options)
    again = dataclasses.replace(options, out=str(tmp_path / "again"))
    other = dataclasses.replace(options, out=str(tmp_path / "other"), seed=2)
    pipeline.train(again), pipeline.train(other)
    assert result(options) == result(again)
    assert result(options)[0] != result(other)[0]
    retrofit, policy, description = export.read(options.out, loaded.config)
    assert retrofit.geometry == GEOMETRY and description["max_context"] == 192
    assert description["training"]["seed"] == 1 and description["training"]["texts"][0]["name"] == "story.txt"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stage,after", [("sensitivity", 2), ("maps", 1), ("tune", 4), ("settle", 1)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(options, tmp_path, monkeypatch, stage, after):
    pipeline.train(options)
    broken = dataclasses.replace(options, out=str(tmp_path / "broken"))
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    progress = run.Run.progress

    def stop(self, name, step, *args, **kwargs):
        if name == stage and step == after:
            raise Interrupted
        progress(self, name, step, *args, **kwargs)

    monkeypatch.setattr(run.Run, "progress", stop)
    with pytest.raises(Interrupted):
        pipeline.train(broken)
    monkeypatch.setattr(run.Run, "progress", progress)
    pipeline.train(broken)
    assert result(broken) == result(options)


def test_a_run_that_starts_from_a_controller_only_tunes_it_and_settles(options, tmp_path, loaded):
    pipeline.train(options)
    further = dataclasses.replace(options, out=str(tmp_path / "further"), start=options.out)
    pipeline.train(further)
    log = (pipeline.pathlib.Path(further.out) / pipeline.UNFINISHED / "log.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in log} == {"tune", "settle", "done"}
    first, second = (export.read(o.out, loaded.config) for o in (options, further))
    prices = [json.loads(line)["price"] for line in log if json.loads(line)["stage"] == "tune"]
    assert prices[0] == pytest.approx(first[2]["training"]["price"], abs=1e-5)  # not down to where a first run begins
    assert second[2]["training"]["start"] and "start" not in first[2]["training"]
    moved = [(a.x - b.x).abs().max().item() for a, b in zip(first[0].controllers, second[0].controllers)]
    assert 0 < max(moved) < 0.2  # tuned from where it was, not from anew
    with pytest.raises(CalibrationError, match="missing-controller"):
        pipeline.train(dataclasses.replace(further, out=str(tmp_path / "third"), start=str(tmp_path / "missing-controller")))


def test_no_minutes_choose_offsets_alone(options, tmp_path, loaded):
    pipeline.train(options)
    settled_again = dataclasses.replace(options, out=str(tmp_path / "settled"), start=options.out, steps_scale=0, share=0.4)
    figures = pipeline.train(settled_again)
    (first, _, before), (second, _, after) = (export.read(o.out, loaded.config) for o in (options, settled_again))
    assert after["training"]["price"] == before["training"]["price"]  # where tuning would go on
    for a, b in zip(first.controllers, second.controllers):
        assert torch.equal(a.x, b.x) and torch.equal(a.scalars_skip[:, 1:], b.scalars_skip[:, 1:])
    assert max(figures["full_share"].values()) == pytest.approx(0.4, abs=0.1)
    with pytest.raises(CalibrationError, match="--start-from"):
        pipeline.train(dataclasses.replace(settled_again, start=None))


def test_an_unfinished_run_is_not_continued_with_other_settings(options):
    pipeline.train(options)
    with pytest.raises(CalibrationError, match="other settings"):
        pipeline.train(dataclasses.replace(options, share=0.3))


def test_a_damaged_state_is_named(options):
    pipeline.train(options)
    (pipeline.pathlib.Path(options.out) / pipeline.UNFINISHED / "maps.pt").write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="maps.pt"):
        pipeline.train(options)


def test_a_context_without_room_for_routing_is_refused(options):
    with pytest.raises(CalibrationError, match="max-length"):
        pipeline.train(dataclasses.replace(options, max_length=64))


def test_retrieval_prompts_fit_the_shortest_training_length(job):
    for seed in range(20):
        _, prompt = prompts.mixed(job.tokenizer, job.found, 2048, job.run.rng("x", seed))
        assert len(prompt.ids) == 2048
