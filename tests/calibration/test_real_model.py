"""The frozen forward pass on the real model, where it and the shared data are there."""

import os
import pathlib

import pytest
import torch

from metattn_calibration import checkpoint
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
