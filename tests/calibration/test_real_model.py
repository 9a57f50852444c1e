"""The forward pass on the real model, frozen and with the shipped controller, where it and the shared data are there."""

import json
import os
import pathlib
import subprocess

import pytest
import torch
from test_engine import Calibration, eligible

from metattn_calibration import checkpoint, export
from metattn_calibration.model import Model

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = 3.735  # transformers in float32, first 2,048 tokens of bytes 30,000 to 60,000 of Moby Dick


@pytest.fixture(scope="module")
def real():
    model = os.environ.get("METATTN_TEST_MODEL")
    if not model:
        pytest.skip("no real model: METATTN_TEST_MODEL is not set")
    return checkpoint.load(model)


@pytest.fixture(scope="module")
def passage(real):
    file = pathlib.Path(os.environ.get("METATTN_SHARED_DATA") or ROOT.parent / "shared" / "data") / "moby-dick.txt"
    if not file.exists():
        pytest.skip("no shared data")
    text = file.read_bytes()[30000:60000].decode()
    return torch.tensor(real.tokenizer.encode(text)[:2048])


def test_the_forward_pass_has_the_reference_loss(real, passage):
    torch.set_num_threads(2)
    model = Model(real)
    with torch.no_grad():
        assert abs(model.nll(model.dense(passage), passage).mean().item() - REFERENCE) < 0.005


def test_the_fingerprint_is_that_of_the_engine(real):
    assert checkpoint.fingerprint(real.config, real.tensors) == "fnv1a64:e19b7f73a80c694b"


def test_the_engine_routes_it_like_the_calibration(real, tmp_path, capsys):
    binary, tokens = pathlib.Path(os.environ.get("METATTN_BINARY") or ROOT / "build" / "release" / "metattn"), 1024
    if not binary.exists():
        pytest.skip("no built engine: build/release/metattn or METATTN_BINARY")
    torch.set_num_threads(2)
    controller, text = ROOT / "deploy" / "controllers" / "smollm2-135m", tmp_path / "text"
    text.write_text((ROOT / "README.md").read_text() + (ROOT / "engine" / "README.md").read_text(), encoding="utf-8")
    done = subprocess.run([binary, "eval", "--model", os.environ["METATTN_TEST_MODEL"], "--controller", controller, "--text", text,
                           "--context", str(tokens), "--max-tokens", str(tokens), "--record-decisions", tmp_path, "--json"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    retrofit, policy, _ = export.read(controller, real.config)
    ids = torch.tensor(real.tokenizer.encode(text.read_text(encoding="utf-8"))[:tokens])
    ours = Calibration(Model(real, torch.float32), retrofit, policy, ids)
    decisions, _ = eligible(tmp_path, tokens, retrofit.geometry)
    same = (torch.stack(ours.decisions) == decisions).float().mean().item()
    away = json.loads(done.stdout)["nll"] - ours.loss()
    with capsys.disabled():
        print(f"\ncpu, shipped controller: {same:.4%} of {decisions.numel()} decisions equal, NLL differs by {away:.2g}")
    assert same > 0.98
    assert abs(away) < 0.002
