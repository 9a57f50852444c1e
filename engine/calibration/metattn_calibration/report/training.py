"""What the training took and how it went, from controller.json, its log and, where kept, what it printed."""

import pathlib
import re

from .reliability import log_lines

PEAK = re.compile(r"min left, ([\d.]+) GB:")


def seconds_per_stage(lines, clock="elapsed"):
    """Time between the last lines of one stage and the next; an interrupted run starts counting at 0 again.
    clock: "elapsed", or "cpu", the processor time of all threads, which other work on the machine hardly changes
    (empty for logs without it)."""
    out, before = {}, 0.0
    for line in lines:
        if clock not in line:
            return {}
        if line[clock] < before:
            before = 0.0
        out[line["stage"]] = out.get(line["stage"], 0.0) + line[clock] - before
        before = line[clock]
    out.pop("done", None)
    return out


def curves(lines):
    maps = [[v["step"], v["length"], v["relative_error"]] for v in lines if v["stage"] == "maps"]
    tune = [[v["step"], v["kind"], v["kl"], v["full"], v["price"]] for v in lines if v["stage"] == "tune"]
    return {"maps": maps, "tune": tune}


def peak_memory(lines, progress):
    """GB, from the log, or from the saved progress lines; None where neither says."""
    found = [v["peak_gb"] for v in lines if "peak_gb" in v]
    if progress:
        found += [float(x) for x in PEAK.findall(pathlib.Path(progress).read_text(errors="replace"))]
    return max(found, default=None)


def measure(description, training, progress=None):
    lines = log_lines(training)
    facts = description["training"]
    out = {"facts": {k: facts[k] for k in ("texts", "plan", "seed", "share", "threads", "dtype", "figures") if k in facts},
           "seconds": {}, "cpu_seconds": {}, "curves": {}, "peak_gb": peak_memory(lines, progress)}
    if lines:
        out.update(seconds=seconds_per_stage(lines), cpu_seconds=seconds_per_stage(lines, "cpu"), curves=curves(lines))
    return out
