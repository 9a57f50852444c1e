"""`metattn bench`: the JSON that later checks rely on, and two routes timed in turn. Figures of time are not judged here."""

import json
import subprocess

import cluster

RUN = ("--prompt-tokens", "200", "--decode-tokens", "4", "--context", "1500", "--sequences", "2", "--repeats", "2")


def bench(model, *flags):
    return subprocess.run([cluster.BUILD / "metattn", "bench", "--model", model, "--threads", "1", "--json", *RUN, *flags],
                          capture_output=True, text=True, timeout=120)


def test_its_json_has_every_figure(tiny_model):
    done = bench(tiny_model)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for figure in ("prefill_tokens_per_s", "decode_tokens_per_s", "weight_bytes", "attention_bytes_dense"):
        assert report[figure] > 0, figure
    assert 0 < report["decode_step_ms"]["p50"] <= report["decode_step_ms"]["p99"]
    assert (report["ranks"], report["threads_per_rank"]) == (1, 1) and report["isa"]
    assert report["attention_bytes_read"] == report["attention_bytes_dense"]  # every row reads everything
    assert "baseline" not in report


def test_another_route_is_timed_in_turn_on_its_own_cache(tiny_model):
    done = bench(tiny_model, "--route", "local", "--against", "full")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["attention_bytes_read"] < 0.5 * report["attention_bytes_dense"]
    baseline = report["baseline"]
    assert baseline["attention_bytes_read"] == baseline["attention_bytes_dense"] == report["attention_bytes_dense"]
    assert baseline["prefill_tokens_per_s"] > 0 and baseline["decode_tokens_per_s"] > 0
    # rounds of both, each with its number
    assert "policy decode 2/2" in done.stderr and "baseline decode 2/2" in done.stderr


def test_forced_decisions_would_hold_for_both_routes_and_are_refused(tiny_model):
    done = bench(tiny_model, "--against", "full", "--force-share", "0.5")
    assert done.returncode != 0 and done.stdout == ""
    assert "--against" in done.stderr and "--force-share" in done.stderr
