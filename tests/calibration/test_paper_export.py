"""`metattn-calibrate paper` as a user calls it; what it exports is what it measured."""

import json
import os
import pathlib
import random

import pytest
import torch
from test_paper import SMALL, drawn, lively

from metattn_calibration import checkpoint, cli, data
from metattn_calibration.errors import CalibrationError
from metattn_calibration.model import Model
from metattn_calibration.paper import command, engine, export, mechanisms, measure
from metattn_calibration.paper.model import LINKS

ENGINE = pathlib.Path(os.environ.get("METATTN_BINARY") or
                      pathlib.Path(__file__).resolve().parents[2] / "build" / "release" / "metattn")
WORDS = "the whale and a ship sailed over cold water while captain counted birds; naïve café".split()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    rng, path = random.Random(5), tmp_path_factory.mktemp("story") / "story.txt"
    path.write_text(" ".join(" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(300)), encoding="utf-8")
    return str(path)


def options(story, out, **more):
    values = {"text": story, "steps": 20, "windows": 20, "etas": (0.0, 0.6, 1.0), "setting": SMALL, "quiet": True, **more}
    return command.Options(str(out), **values)


@pytest.fixture(scope="module")
def trained(story, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("paper")
    return out, command.run(options(story, out))


def exported(directory):
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*"))
            if f.is_file() and ".training" not in f.parts}


def test_the_same_seed_gives_the_same_bytes(trained, story, tmp_path):
    command.run(options(story, tmp_path))
    first, second = exported(trained[0]), exported(tmp_path)
    assert len(first) == 3 * 3 + 2 * 2 + 3
    assert first == second
    command.run(options(story, tmp_path / "other", seed=2))
    assert exported(tmp_path / "other")["elbo/model.safetensors"] != first["elbo/model.safetensors"]


def test_an_interrupted_run_ends_like_an_undisturbed_one(trained, story, tmp_path, monkeypatch):
    from metattn_calibration import run

    monkeypatch.setattr(run, "SAVE_SECONDS", 0)
    steps, inner = [0], command.train.objective

    def stop(*arguments):
        steps[0] += 1
        if steps[0] == 27:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(command.train, "objective", stop)
    with pytest.raises(KeyboardInterrupt):
        command.run(options(story, tmp_path))
    command.run(options(story, tmp_path))
    assert steps[0] == 61  # the interrupted step alone was begun twice
    assert exported(tmp_path) == exported(trained[0])


@pytest.mark.parametrize("link", LINKS)
def test_the_export_read_back_computes_what_was_trained(link, tmp_path):
    model, cut = lively(link), drawn(4)
    export.write(model, tmp_path, measure.mix(model, cut) if link else None, {})
    read = export.read(tmp_path)
    with torch.no_grad():
        before, after = model.forward(cut), read.forward(cut)
    assert read.rounds and (before.logits - after.logits).abs().max() < 0.05 * before.logits.abs().max()
    read.rounds = False
    for controller in model.controllers:  # what the format rounds
        controller.x.data = controller.x.data.bfloat16().float()
    with torch.no_grad():
        assert (model.forward(cut).logits - read.forward(cut).logits).abs().max() < 1e-4


@pytest.mark.parametrize("link", LINKS)
def test_the_export_runs_in_the_frozen_model_of_the_calibration(link, tmp_path):
    model, cut = lively(link), drawn(2)
    export.write(model, tmp_path, measure.mix(model, cut) if link else None, {})
    read, frozen = export.read(tmp_path), Model(checkpoint.load(tmp_path), torch.float32)

    def attention(layer, x, q, k, v):
        if link is None:
            return mechanisms.full(q, k, v)
        e = read.energies(layer, x[None])[0]
        mean = torch.nn.functional.softplus(e) + SMALL.epsilon if link == "softplus" else e.exp()
        mean = mean / mean.sum(-1, keepdim=True)
        o = mechanisms.outputs(q, k, v, SMALL.window)
        return sum(mean[None, :, m:m + 1] * o[m] for m in range(3))

    with torch.no_grad():
        logits = read.forward(cut).logits
        for row, ids in zip(logits, cut):  # as in test_forced_to_full_the_model_is_unmodified
            assert (frozen.logits(frozen.hidden(ids, attention)) - row).abs().max() < 1e-3 * row.abs().max()


def test_the_controller_directory_says_what_the_contract_says(trained):
    for name, link in (("elbo", "softplus"), ("baseline", "softmax")):
        directory = trained[0] / name
        d = json.loads((directory / "controller" / "controller.json").read_text())
        expected = {"format": "metattn-controller", "version": 1, "window_scope": "exact", "linear_scope": "all",
                    "decisions": "token", "features": "paper", "uncertain_policy": "mixture", "feature_map": "elu1",
                    "link": link, "epsilon": 0.01, "temperature": 1.0, "window": 5, "sinks": 0, "block": 64, "eta": 0.0,
                    "hidden_width": 8, "activation": "gelu_tanh", "max_context": 24, "cost_weight": 0.0}
        assert {k: d[k] for k in expected} == expected
        loaded = checkpoint.load(directory)
        assert d["base_model"]["fingerprint"] == checkpoint.fingerprint(loaded.config, loaded.tensors)
        mix = torch.tensor(d["mix"])
        assert mix.shape == (2, 2, 3) and (mix.sum(-1) - 1).abs().max() < 1e-5 and torch.equal(mix[:, 0], mix[:, 1])
        from safetensors.torch import load_file

        tensors = load_file(str(directory / "controller" / "controller.safetensors"))
        shapes = {"linear.log_gain": (2,), "linear.kappa": (2,), "controller.x": (8, 32), "controller.x_skip": (1, 3, 32),
                  "controller.scalar_mean": (1, 2), "controller.scalar_scale": (1, 2), "controller.scalars": (1, 8, 2),
                  "controller.bias": (1, 8), "controller.out": (1, 3, 8), "controller.out_bias": (1, 3),
                  "controller.scalars_skip": (1, 3, 2)}
        assert {n: tuple(t.shape) for n, t in tensors.items()} == \
            {f"layers.{l}.{n}": s for l in range(2) for n, s in shapes.items()}
        assert all((t.dtype == torch.bfloat16) == n.endswith((".x", ".x_skip")) for n, t in tensors.items())


def test_tokens_are_the_bytes_of_the_text(trained):
    tokenizer = checkpoint.load(trained[0] / "dense").tokenizer
    text = "A naïve whale\n\t didn't  count 12345 ünits.  \n\n"
    assert tokenizer.encode(text) == list(text.encode()) and tokenizer.decode(tokenizer.encode(text)) == text


def test_the_held_out_text_is_what_was_measured_and_not_trained_on(trained, story):
    out, results = trained
    cut = measure.windows(command.tokens((out / "held-out.txt").read_text(encoding="utf-8")), SMALL.length)
    assert len(cut) == results["text"]["windows"] in (19, 20)  # less where a character would be cut at the end
    assert measure.evaluate(export.read(out / "elbo"), cut, 0.0) == results["elbo"]["sweep"][0]
    text = data.named_text(story)[1]
    train, held = command.split(text)
    assert len(train) + len(held) == len(text) and abs(len(held) / len(text) - 0.1) < 0.01
    assert sorted(train + held) == sorted(text) and text.endswith(held[-50:]) and text.startswith(train[:50])


def test_the_report_has_the_papers_figures_beside_ours(trained):
    out, results = trained
    page = (out / "report.md").read_text()
    for figure in ("25.1 %", "59.3 %", "43.3 %", "55.8 %", "+6.3 %"):
        assert figure in page
    ours = results["elbo"]["sweep"][0]
    assert f"{100 * ours['cost']:.1f} %" in page and f"{100 * ours['entropy']:.1f} %" in page
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(results))
    soft, hard = results["elbo"]["sweep"][0], results["elbo"]["sweep"][-1]
    assert soft["mixture"] == 1 and hard["mixture"] == 0 and soft["cost"] == soft["expected_cost"]


def test_the_command_prints_the_report(story, tmp_path, capsys):
    assert cli.main(["--threads", "1", "paper", "--text", story, "--out", str(tmp_path), "--steps", "1", "--windows", "2",
                     "--quiet"]) == 0
    assert capsys.readouterr().out == (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("arguments,word", [(["--text", "absent.txt"], "absent.txt"), (["--steps", "0"], "--steps")])
def test_a_wrong_argument_is_named(story, tmp_path, capsys, arguments, word):
    assert cli.main(["paper", "--text", story, "--out", str(tmp_path), "--quiet", *arguments]) == 1
    assert word in capsys.readouterr().err


def test_a_text_of_a_few_words_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("too short")
    with pytest.raises(CalibrationError, match="t.txt.*too few"):
        command.run(options(str(tmp_path / "t.txt"), tmp_path / "out"))


def test_diverged_training_is_not_exported(tmp_path):
    model = lively("softplus")
    with torch.no_grad():
        model.weights["lm_head.weight"][3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="lm_head.weight.*diverged"):
        export.write(model, tmp_path, None, {})


def test_a_controller_of_a_retrofit_is_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained[0] / "elbo", tmp_path / "m")
    file = tmp_path / "m" / "controller" / "controller.json"
    file.write_text(file.read_text().replace('"exact"', '"block"'))
    with pytest.raises(CalibrationError, match="controller.json.*paper"):
        export.read(tmp_path / "m")


@pytest.mark.skipif(not ENGINE.exists(), reason="no built engine: build/release/metattn or METATTN_BINARY")
@pytest.mark.parametrize("link", LINKS)
def test_the_engine_gives_the_same_loss_and_routing(link, story, tmp_path):
    model = lively(link)
    text = data.named_text(story)[1][:40 * SMALL.length]
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    cut = measure.windows(command.tokens(text), SMALL.length)
    export.write(model, tmp_path / "m", measure.mix(model, cut) if link else None, {})
    read = export.read(tmp_path / "m")
    for eta in (0.0, 0.9, 1.0) if link else (0.0,):
        ours = measure.evaluate(read, cut, eta)
        theirs = engine.evaluate(ENGINE, tmp_path / "m", tmp_path / "t.txt", SMALL.length,
                                 ("--eta", str(eta)) if link else ())
        assert theirs["predictions"] == ours["predictions"]
        assert abs(theirs["nll"] - ours["nll"]) < 1e-4 * max(1, ours["nll"])
        if link:
            assert abs(theirs["mixture"] - ours["mixture"]) < 2e-3 and abs(theirs["uncertainty"] - ours["entropy"]) < 1e-4
            assert abs(theirs["expected_cost"] - ours["expected_read"]) < 1e-4


@pytest.mark.parametrize("body,word", [("echo 'no such flag' >&2; exit 3", "3: no such flag"), ("echo hello", "JSON")])
def test_an_engine_that_fails_is_reported_with_its_last_words(trained, tmp_path, body, word):
    program = tmp_path / "metattn"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    with pytest.raises(CalibrationError, match=word):
        engine.evaluate(program, trained[0] / "elbo", trained[0] / "held-out.txt", 24)
    with pytest.raises(CalibrationError, match="absent"):
        engine.evaluate(tmp_path / "absent", trained[0] / "elbo", trained[0] / "held-out.txt", 24)
