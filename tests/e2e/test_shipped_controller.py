"""The controller under deploy/controllers on the model it was made for: what it costs and saves on a short text that its
calibration has not seen, the project's own documents."""

import json
import subprocess

import cluster
import pytest
from conftest import ROOT

CONTROLLER = ROOT / "deploy/controllers/smollm2-135m"
CONTEXT = 4096


@pytest.fixture(scope="module")
def scores(real_model, tmp_path_factory):
    """`metattn eval` of one window: routed and unmodified."""
    text = tmp_path_factory.mktemp("text") / "documents"
    text.write_text("".join(p.read_text() for p in sorted([*ROOT.glob("README.md"), *ROOT.glob("*/README.md"),
                                                           *ROOT.glob("*/*/README.md"), *ROOT.glob("engine/*.h")])))

    def score(*flags):
        done = subprocess.run([cluster.BUILD / "metattn", "eval", "--model", real_model, "--text", text, "--context",
                               str(CONTEXT), "--max-tokens", str(CONTEXT), "--json", *flags],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return score("--controller", CONTROLLER), score("--route", "full")


def test_it_loses_little(scores):
    routed, dense = scores
    assert routed["predictions"] == dense["predictions"] == CONTEXT - 1
    assert routed["nll"] - dense["nll"] < 0.03


def test_it_reads_a_fraction(scores):
    routed, dense = scores
    assert dense["attention_bytes_ratio"] == 1
    assert 0.05 < routed["share"]["full"] < 0.25
    assert routed["attention_bytes_ratio"] < 0.45  # of prefill; decode at the end of the window reads less


def test_its_report_is_there():
    report = (CONTROLLER / "report.md").read_text()
    for picture in CONTROLLER.glob("*.png"):
        assert picture.name in report
