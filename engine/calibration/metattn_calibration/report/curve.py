"""Loss against the share of full rows, and what the gate on U adds: every point is a run of the engine."""

import numpy as np

from .measure import mean_error
from .quality import compared, share_of

OFFSETS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)  # added to full's score
COST_WEIGHTS = (0.5, 1.0, 2.0)
RANDOM = (0.0, 0.1, 0.2, 0.3, 0.5)
ETAS = (0.8, 0.9, 0.95, 0.98, 1.0)


def point(engine, found, length, controller, flags=()):
    rows = [r for part in compared(engine, found, length, controller, flags).values() for r in part]
    delta, error = mean_error([d for d, _, _ in rows])
    return {"full": share_of(rows), "linear": share_of(rows, "linear"), "delta": delta, "error": error,
            "bytes_ratio": float(np.mean([r["attention_bytes_ratio"] for _, r, _ in rows])),
            "windows_delta": [d for d, _, _ in rows]}


def measure(engine, controller, found, length, values=None):
    """values: other settings by kind, for short runs."""
    values = {"offset": OFFSETS, "cost weight": COST_WEIGHTS, "random": RANDOM, "eta": ETAS, **(values or {})}
    out = {"length": length, "windows": sum(map(len, found.values())), "points": []}

    def add(kind, value, subject, flags=()):
        out["points"].append({"kind": kind, "value": value, **point(engine, found, length, subject, flags)})

    for offset in values["offset"]:
        add("offset", offset, controller.tilted(offset, engine.store.directory / "tilted") if offset else controller)
    for weight in values["cost weight"]:
        add("cost weight", weight, controller, ("--cost-weight", weight))
    for share in values["random"]:
        add("random", share, controller, ("--force-share", share))
    for eta in values["eta"]:
        add("eta", eta, controller, ("--eta", eta))
    out["gate"] = gate(out["points"])
    return out


def at_share(tilt, share):
    """The tilt curve's loss of each window at that share, between its two neighbours; None outside the curve."""
    tilt = sorted(tilt, key=lambda p: p["full"])
    for low, high in zip(tilt, tilt[1:]):
        if low["full"] <= share <= high["full"] and high["full"] > low["full"]:
            part = (share - low["full"]) / (high["full"] - low["full"])
            return (1 - part) * np.array(low["windows_delta"]) + part * np.array(high["windows_delta"])
    return None


def gate(points):
    """For each eta: its loss minus the tilt curve's at the same share, paired by window (below 0: the gate is better)."""
    tilt, out = [p for p in points if p["kind"] == "offset"], []
    for p in (p for p in points if p["kind"] == "eta"):
        same = at_share(tilt, p["full"])
        row = {"eta": p["value"], "full": p["full"], "delta": p["delta"], "tilt_delta": None, "gain": None, "gain_error": None}
        if same is not None:
            difference, error = mean_error(np.array(p["windows_delta"]) - same)
            row.update(tilt_delta=float(same.mean()), gain=-difference, gain_error=error)
        out.append(row)
    return out
