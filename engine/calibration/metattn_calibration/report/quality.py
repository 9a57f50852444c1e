"""Loss, shares, bytes and the map of full rows: routed against unmodified, window by window, in the engine."""

import numpy as np

from .measure import mean_error


def compared(engine, found, length, controller=None, flags=(), record=False):
    """Each excerpt with and without routing -> {text: [(loss, routed result)]}."""
    out = {}
    for name, pieces in found.items():
        rows = []
        for piece in pieces:
            dense = engine.evaluate(piece, length)
            routed = engine.evaluate(piece, length, controller, flags, record)
            rows.append((routed["nll"] - dense["nll"], routed, dense["nll"]))
        out[name] = rows
    return out


def share_of(rows, name="full"):
    shares = [r["share"][name] for _, r, _ in rows if r["share"]]
    return float(np.mean(shares)) if shares else None


def row_of(rows):
    """One line of a table: means over windows."""
    delta, error = mean_error([d for d, _, _ in rows])
    out = {"windows": len(rows), "delta": delta, "error": error, "dense_nll": float(np.mean([n for _, _, n in rows])),
           **{name: share_of(rows, name) for name in ("full", "linear", "local")},
           "bytes_ratio": float(np.mean([r["attention_bytes_ratio"] for _, r, _ in rows])),
           "windows_delta": [d for d, _, _ in rows]}
    if "last_bytes_ratio" in rows[0][1]:
        out["decode_bytes"], out["decode_bytes_error"] = mean_error([r["last_bytes_ratio"] for _, r, _ in rows])
    if rows[0][1].get("uncertainty") is not None:
        out["uncertainty"] = float(np.mean([r["uncertainty"] for _, r, _ in rows]))
    return out


def pooled(table):
    """The mean over texts, each of the same weight; its error from theirs."""
    texts = list(table.values())
    out = {key: float(np.mean([t[key] for t in texts])) for key in ("delta", "dense_nll", "full", "linear", "local", "bytes_ratio",
                                                                    "decode_bytes", "uncertainty")
           if all(t.get(key) is not None for t in texts)}
    errors = [t["error"] for t in texts]
    out["error"] = None if None in errors else float(np.sqrt(np.sum(np.square(errors))) / len(errors))
    out["windows"] = sum(t["windows"] for t in texts)
    return out


def table(engine, found, length, controller, record=False, flags=()):
    """-> {text: row, "mean": row}, counts [layers, heads, 3] (None without record)."""
    measured = compared(engine, found, length, controller, flags, record)
    rows = {name: row_of(r) for name, r in measured.items()}
    counts = sum(np.array(r["counts"]) for part in measured.values() for _, r, _ in part) if record else None
    rows["mean"] = pooled(rows)
    return rows, counts


def measure(engine, controller, texts, lengths):
    """texts: {length: {name: [Excerpt]}}."""
    out, total = {"lengths": {}, "seeds": []}, 0
    for length in lengths:
        rows, counts = table(engine, texts[length], length, controller, record=True)
        out["lengths"][str(length)], total = rows, total + counts
    out["share_by_head"] = (total[..., 0] / np.maximum(1, total.sum(-1))).tolist()
    return out
