"""The command as a user calls it."""

import json

import pytest

from metattn_calibration import cli


def test_untrained_directory_can_be_evaluated(tmp_path, capsys):
    from conftest import random_tensors, write_directory

    from metattn_calibration import checkpoint

    config = checkpoint.ModelConfig(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, vocab=259, ffn=32,
                                    max_positions=1024)
    model = str(write_directory(tmp_path / "model", config, random_tensors(config)))
    out, text = str(tmp_path / "controller"), tmp_path / "t.txt"
    text.write_text("The ship went over the water and came back. " * 120)
    assert cli.main(["untrained", "--model", model, "--out", out]) == 0
    assert abs(sum(json.loads(capsys.readouterr().out)["shares"]) - 1) < 1e-3
    assert cli.main(["eval", "--model", model, "--controller", out, "--text", str(text), "--length", "700", "--count", "2",
                     "--trials", "2", "--forms", "vault", "--key-length", "600"]) == 0
    found = json.loads(capsys.readouterr().out)
    everything = found["texts"]["700"]["all"]
    assert everything["tokens"] == 2 * 699
    assert abs(sum(everything["share"].values()) - 1) < 1e-3
    assert found["pass_keys"]["vault"]["600"]["trials"] == 2


@pytest.mark.parametrize("arguments", [
    ["train", "--model", "absent.gguf", "--text", "x", "--out", "y"],
    ["eval", "--model", "absent.gguf", "--controller", "y", "--text", "x"]])
def test_an_error_is_one_line_that_names_the_file(capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("metattn-calibrate: absent.gguf") and error.count("\n") == 1
