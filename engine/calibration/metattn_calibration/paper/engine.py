"""Runs `metattn eval` on an exported directory, so that the report can print the engine's figures beside ours."""

import json
import pathlib
import subprocess

from ..errors import CalibrationError
from .export import CONTROLLER

KEEP = ("nll", "predictions", "share", "soft_share", "mixture", "uncertainty", "expected_cost", "attention_bytes_ratio",
        "attention_flops_ratio")


def evaluate(engine, directory, text, length, options=(), device="ref"):
    """-> what the engine measured. options: more flags."""
    controller = pathlib.Path(directory) / CONTROLLER
    command = [str(engine), "eval", "--model", str(directory), "--text", str(text), "--context", str(length),
               "--max-num-batched-tokens", str(length), "--device", device, "--threads", "2", "--json", *options]
    if controller.is_dir():
        command += ["--controller", str(controller)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CalibrationError(f"--engine {engine}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CalibrationError(f"--engine {engine}: ended with {done.returncode}: {last}")
    try:
        found = json.loads(done.stdout)
        return {key: found[key] for key in KEEP if key in found}
    except (ValueError, TypeError) as error:
        raise CalibrationError(f"--engine {engine}: its output is not one JSON object: {error}") from error
