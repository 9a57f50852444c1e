"""The report as a user calls it: a tiny model, and a stand-in for the engine (fake_engine.py: it checks how the engine's output is
read and what is made of it, not the engine)."""

import json
import math
import pathlib
import stat
import sys

import pytest
import torch

from metattn_calibration import checkpoint, cli, data, evaluate
from metattn_calibration.errors import CalibrationError
from metattn_calibration.report import markdown, measure, plots
from metattn_calibration.report.command import KEPT

HERE = pathlib.Path(__file__).resolve().parent
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from conftest import random_tensors, write_directory

    config = checkpoint.ModelConfig(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, vocab=259, ffn=32, max_positions=1024)
    return str(write_directory(tmp_path_factory.mktemp("model") / "model", config, random_tensors(config)))


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    """Controller, texts, an executable engine."""
    folder = tmp_path_factory.mktemp("report")
    for name, sentence in (("novel", "The ship went over the water and came back. "), ("facts", "A mast is a tall pole of wood. ")):
        (folder / f"{name}.txt").write_text("".join(f"{i} {sentence}" for i in range(400)))
    assert cli.main(["untrained", "--model", model, "--out", str(folder / "controller")]) == 0
    engine = folder / "metattn"
    engine.write_text(f"#!/bin/sh\nexec {sys.executable} {HERE / 'fake_engine.py'} \"$@\"\n")
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    training = folder / "training"
    training.mkdir()
    lines = [{"elapsed": 5.0, "cpu": 9.0, "stage": "maps", "step": 0, "length": 700, "relative_error": 1.2},
             {"elapsed": 9.0, "cpu": 17.5, "stage": "maps", "step": 1, "length": 900, "relative_error": 0.7, "peak_gb": 1.5},
             {"elapsed": 4.0, "cpu": 6.0, "stage": "tune", "step": 0, "kind": "text", "kl": 0.1, "full": 0.2, "price": 0.03},
             {"elapsed": 8.0, "cpu": 14.0, "stage": "tune", "step": 1, "kind": "text", "kl": 0.05, "full": 0.2, "price": 0.03}]
    (training / "log.jsonl").write_text("".join(json.dumps(v) + "\n" for v in lines))
    return folder


def arguments(place, model, out, *more):
    return ["--threads", "1", "report", "--model", model, "--controller", str(place / "controller"), "--engine", str(place / "metattn"),
            "--text", str(place / "novel.txt"), str(place / "facts.txt"), "--out", str(out), "--quick", "--quiet", *more]


@pytest.fixture(scope="module")
def report(place, model, tmp_path_factory):
    """One whole run."""
    out = tmp_path_factory.mktemp("out")
    code = cli.main(arguments(place, model, out, "--training", str(place / "training"), "--calibration-text", str(place / "novel.txt:0-50"),
                              "--docs", "none", "--also", str(place / "controller"), "--forms", "vault", "--trials", "4", "--note", "Read with care."))
    assert code == 0
    return out, json.loads((out / "report.json").read_text())


def test_a_whole_report_has_every_plot_small_and_every_section(report):
    out, _ = report
    assert sorted(p.name for p in out.glob("*.png")) == sorted(plots.PLOTS)
    for file in out.glob("*.png"):
        assert file.read_bytes().startswith(PNG) and file.stat().st_size < 60_000
    text = (out / "report.md").read_text()
    assert "\n- Read with care.\n" in text
    assert "Not measured" not in text and "nan" not in text
    for file in plots.PLOTS:
        assert f"({file})" in text


def test_losses_and_shares_are_those_of_the_engine(report):
    mean = report[1]["quality"]["lengths"]["700"]["mean"]
    eligible = range(319, 700)
    assert mean["delta"] == pytest.approx(0.08)
    assert mean["full"] == pytest.approx(sum(t % 100 < 20 for t in eligible) / len(eligible))
    random = [p for p in report[1]["curve"]["points"] if p["kind"] == "random"]
    assert [round(p["delta"], 6) for p in random] == [round(0.1 * (1 - p["value"]), 6) for p in random]


def test_the_bytes_of_the_last_rows_are_counted_as_the_engine_counts_all_rows(report):
    sys.path.insert(0, str(HERE))
    import fake_engine as fake

    expected = {}
    for length in (700, 900):
        read = dense = 0
        for t in range(length - measure.LAST, length):
            far = max(0, t - 255) // 64 * 64 - 4
            read, dense = read + fake.bytes_of(t + 1, far, fake.mechanism(t, 0.2)), dense + (t + 1) * 64
        expected[str(length)] = read / dense
    got = {n: rows["mean"]["decode_bytes"] for n, rows in report[1]["quality"]["lengths"].items()}
    assert got == pytest.approx(expected)


def test_a_gate_on_the_tilt_curve_gains_nothing(report):
    """The stand-in's loss depends on its parameter only; at 0.98 nothing is gated more than in the tilt curve itself."""
    gate = {p["eta"]: p for p in report[1]["curve"]["gate"]}
    assert gate[0.98]["gain"] == pytest.approx(0, abs=1e-9) and gate[0.8]["full"] > gate[0.98]["full"]


def test_pass_keys_are_compared_with_the_whole_value(report):
    cell = report[1]["pass_keys"]["cells"][0]
    assert cell["dense"] == cell["trials"] == 4 and cell["held_out"]
    source = data.Source("x", "text", "word. " * 2000, torch.zeros(1))

    class Letters:
        def encode(self, text):
            return [ord(c) for c in text]

    values = [evaluate.pass_key_trial(Letters(), source, "vault", 700, n)[0].value for n in range(4)]
    assert cell["routed"] == sum(int(v) % 2 for v in values)


def test_a_prompt_that_the_engine_reads_otherwise_is_an_error(place, tmp_path):
    """As with a special token that it takes for plain text."""
    from metattn_calibration.report import pass_keys

    class Halves:
        def encode(self, text):
            return [ord(c) for c in text[:len(text) // 2 * 2:2]]

        def decode(self, ids):
            return "12345" * len(ids)

    engine = measure.Engine(place / "metattn", "m", measure.Store(tmp_path), quiet=True)
    source = data.Source("x", "text", "word. " * 2000, torch.zeros(1))
    with pytest.raises(CalibrationError, match="another text"):
        pass_keys.trial(engine, {"dense": None}, Halves(), source, ("vault", 300, 0))


def test_seeds_and_training_facts_are_in_the_report(report):
    out, found = report
    assert len(found["quality"]["seeds"]) == 2
    assert found["training"]["seconds"] == {"maps": 9.0, "tune": 8.0} and found["training"]["peak_gb"] == 1.5
    assert found["training"]["cpu_seconds"] == {"maps": 17.5, "tune": 14.0} and "| all | 17 | 32 |" in (out / "report.md").read_text()
    assert "standard deviation over seeds" in (out / "report.md").read_text()


def test_reliability_and_ablations_are_of_the_tiny_model(report):
    u, a = report[1]["uncertainty"], report[1]["ablations"]
    assert sum(b["rows"] for b in u["bins"]) == u["rows"] and 0 <= u["ece"] <= 1 and abs(sum(u["labels"]) - 1) < 1e-5
    assert u["wrong"]["risk"][-1] == pytest.approx(1 - u["accuracy"], abs=1e-4)
    assert u["wrong"]["best_area"] <= u["wrong"]["area"] + 1e-9
    rows = {v["name"]: v for v in a["variants"]}
    assert set(rows) == {"shipped", "recipe", "no prior", "no linear", "token-shared", "all heads", "static heads", "random rows",
                         "error oracle"}
    assert rows["no linear"]["linear"] == 0 and rows["random rows"]["local"] == 0
    assert all(math.isfinite(v["delta"]) and 0 < v["bytes_ratio"] < 1.5 for v in rows.values())


def test_the_same_command_measures_nothing_again(report, place, model, monkeypatch):
    out, found = report
    monkeypatch.setattr(measure.Engine, "_json", lambda *_: pytest.fail("the engine was called again"))
    lines = (out / KEPT / "measured.jsonl").read_text()
    assert cli.main(arguments(place, model, out, "--parts", "quality", "curve", "pass_keys", "--forms", "vault", "--trials", "4",
                              "--also", str(place / "controller"), "--note", "Read with care.")) == 0
    assert (out / KEPT / "measured.jsonl").read_text() == lines
    again = json.loads((out / "report.json").read_text())
    assert again == found


def test_another_seed_may_be_given_by_its_report(report, place, model, tmp_path, capsys):
    out, found = report
    assert cli.main(arguments(place, model, tmp_path / "out", "--parts", "quality", "--also", str(out / "report.json"))) == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(again["quality"]["seeds"]) == 2
    assert markdown.seeds(again["quality"]["seeds"]) == markdown.seeds(found["quality"]["seeds"])

    # what is told is that file's, not this controller's
    other = json.loads((out / "report.json").read_text())
    other["training"]["facts"]["seed"] = 7
    other["quality"]["lengths"]["900"]["mean"].update(delta=0.5, full=0.25)
    (tmp_path / "seven.json").write_text(json.dumps(other))
    assert cli.main(arguments(place, model, tmp_path / "out", "--parts", "quality", "--also", str(tmp_path / "seven.json"))) == 0
    mine, seven = json.loads((tmp_path / "out" / "report.json").read_text())["quality"]["seeds"]
    assert mine == again["quality"]["seeds"][0]
    assert seven["seed"] == 7 and seven["lengths"]["900"]["delta"] == 0.5 and seven["lengths"]["900"]["full"] == 0.25

    # other windows, another text, another model: refused before anything is measured
    def refused(change, word):
        other = json.loads((out / "report.json").read_text())
        change(other)
        (tmp_path / "other.json").write_text(json.dumps(other))
        assert cli.main(arguments(place, model, tmp_path / "new", "--parts", "quality", "--also", str(tmp_path / "other.json"))) == 1
        error = capsys.readouterr().err
        assert "other.json" in error and word in error and error.count("\n") == 1
        assert not (tmp_path / "new" / KEPT / "measured.jsonl").exists()

    refused(lambda r: r["quality"]["lengths"]["700"]["novel.txt"].update(windows=3), "windows of 700")
    refused(lambda r: r["quality"]["lengths"].pop("900"), "windows of 900")
    refused(lambda r: r["about"].update(text_digests=["0", "1"]), "text_digests")
    refused(lambda r: r["about"].update(fingerprint="0"), "fingerprint")
    refused(lambda r: r["quality"]["lengths"]["700"]["mean"].pop("delta"), "delta")
    refused(lambda r: r.pop("training"), "training")
    refused(lambda r: r.update(quality=[]), "TypeError")


def test_markdown_and_plots_are_made_again_from_the_json(report, tmp_path):
    out, _ = report
    assert cli.main(["report", "--from", str(out / "report.json"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.md").read_text() == (out / "report.md").read_text()
    assert sorted(p.name for p in (tmp_path / "again").glob("*.png")) == sorted(plots.PLOTS)


def test_an_unfinished_line_of_the_store_is_measured_again(report, place, model, tmp_path):
    out, _ = report
    kept = tmp_path / KEPT
    kept.mkdir()
    text = (out / KEPT / "measured.jsonl").read_text()
    (kept / "measured.jsonl").write_text(text[:len(text) - 20])
    assert len(measure.Store(kept).values) == len(measure.Store(out / KEPT).values) - 1
    (kept / "measured.jsonl").write_text("nonsense\n" + text)
    with pytest.raises(CalibrationError, match="measured.jsonl:1"):
        measure.Store(kept)


@pytest.mark.parametrize("change,word", [
    (["--text", "absent.txt"], "absent.txt"), (["--engine", "no-such-engine"], "no-such-engine"),
    (["--controller", "nowhere"], "nowhere"), (["--curve-length", "0"], "--curve-length"),
    (["--lengths", "100000"], "does not fit")])
def test_what_is_wrong_is_named_in_one_line(place, model, tmp_path, capsys, change, word):
    assert cli.main(arguments(place, model, tmp_path / "out", "--parts", "quality", *change)) == 1
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_a_count_of_bytes_that_differs_from_the_engine_is_an_error(place, tmp_path):
    engine = measure.Engine(place / "metattn", "m", measure.Store(tmp_path), quiet=True)
    piece = measure.excerpts([str(place / "novel.txt")], 700, 1, tmp_path / "t")["novel.txt"][0]
    other = measure.Controller(place / "controller")
    other.costs = measure.dataclasses.replace(other.costs, token=other.costs.token + 4)
    with pytest.raises(CalibrationError, match="differ"):
        engine.evaluate(piece, 700, other, record=True)


def test_the_error_of_a_mean_is_that_of_its_windows():
    mean, error = measure.mean_error([1.0, 2.0, 3.0])
    assert mean == 2 and error == pytest.approx(1 / 3 ** 0.5)
    assert measure.mean_error([1.0])[1] is None and markdown.with_error(0.01, None) == "+0.0100"
