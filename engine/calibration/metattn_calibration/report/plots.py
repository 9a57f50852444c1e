"""The plots of a report, from its JSON alone. matplotlib without a display; small palette files."""

import math

from ..errors import CalibrationError

BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#d9741a", "#2f8f4e", "#b3352f", "#777777"
KINDS = {"offset": ("tilt on full", BLUE, "o-"), "cost weight": ("cost weight lambda", GREEN, "s"),
         "eta": ("gate eta, tilt as shipped", ORANGE, "^"), "random": ("random rows, the rest linear", GREY, "x--")}


def pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise CalibrationError(f"matplotlib cannot be loaded ({error}); the report's plots need it "
                               "(Debian: python3-matplotlib)") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"figure.dpi": 100, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
                         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    return plt


def save(plt, figure, file):
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def curve(plt, report, file):
    figure, axes = plt.subplots(figsize=(6.4, 4))
    found = report["curve"]
    for kind, (label, colour, style) in KINDS.items():
        points = sorted((p for p in found["points"] if p["kind"] == kind and p["full"] is not None), key=lambda p: p["full"])
        if points:
            axes.errorbar([p["full"] for p in points], [p["delta"] for p in points], [p["error"] or 0 for p in points],
                          fmt=style, color=colour, label=label, capsize=2, markersize=5, linewidth=1.2)
    axes.set(xlabel="full share of rows beyond the window", ylabel="loss, nats a token",
             title=f"Loss against full share, {found['length']} tokens, {found['windows']} windows (engine)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    save(plt, figure, file)


def heat(plt, report, file):
    shares = {"measured on the texts": report["quality"]["share_by_head"],
              "mix in controller.json": [[head[0] for head in layer] for layer in report["mix"]]}
    layers, heads = len(report["mix"]), len(report["mix"][0])
    figure, axes = plt.subplots(2, 1, figsize=(7.4, 1.4 + 0.5 * heads * 2), sharex=True, layout="constrained")
    for axis, (name, table) in zip(axes, shares.items()):
        drawn = axis.imshow([list(column) for column in zip(*table)], vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set(title=f"full share by layer and KV head: {name}", ylabel="KV head", yticks=range(heads))
        axis.grid(False)
    axes[-1].set(xlabel="layer", xticks=range(0, layers, max(1, layers // 10)))
    figure.colorbar(drawn, ax=list(axes), fraction=0.05)
    figure.savefig(file)
    plt.close(figure)


def pass_keys(plt, report, file):
    cells = report["pass_keys"]["cells"]
    forms = list(dict.fromkeys(c["form"] for c in cells))
    depths = sorted({d for c in cells for d in c["depths"]})
    figure, axes = plt.subplots(2, len(forms), figsize=(1.2 + 3.4 * len(forms), 5), squeeze=False, layout="constrained")
    for column, form in enumerate(forms):
        for row, who in enumerate(("dense", "routed")):
            part, axis = [c for c in cells if c["form"] == form], axes[row][column]
            table = [[c["depths"].get(d, {}).get(who, math.nan) / max(1, c["depths"].get(d, {}).get("trials", 1)) for d in depths]
                     for c in part]
            drawn = axis.imshow(table, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            axis.set(title=f"{form}: {'unmodified' if who == 'dense' else 'routed'}",
                     yticks=range(len(part)), yticklabels=[c["length"] for c in part],
                     xticks=range(len(depths)), xticklabels=depths)
            axis.grid(False)
        axes[1][column].set_xlabel("depth of the key")
    for row in axes:
        row[0].set_ylabel("context")
    figure.colorbar(drawn, ax=list(axes.flat), fraction=0.04, label="found")
    figure.savefig(file)
    plt.close(figure)


def reliability(plt, report, file):
    found = report["uncertainty"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.7))
    left.plot([0, 1], [0, 1], ":", color=GREY, label="calibrated")
    most = max(b["rows"] for b in found["bins"])
    left.bar([b["confidence"] for b in found["bins"]], [0.25 * b["rows"] / most for b in found["bins"]], width=0.03,
             color=GREY, alpha=0.35, label="rows (scaled)")
    left.plot([b["confidence"] for b in found["bins"]], [b["frequency"] for b in found["bins"]], "o-", color=BLUE, label="measured")
    left.axvline(found["most_confidence"], color=RED, linewidth=0.8, linestyle="--", label="most that the ELBO asks for")
    left.set(xlabel="max m", ylabel="argmax is the cheapest adequate", title=f"Reliability, ECE {found['ece']:.3f}",
             xlim=(0.3, 1), ylim=(0, 1))
    left.legend(fontsize=7, loc="upper left")
    wrong = found["wrong"]
    right.plot(wrong["coverage"], wrong["risk"], "o-", color=BLUE, markersize=3, label="in order of U")
    right.axhline(wrong["random_area"], color=GREY, linestyle="--", label="in random order")
    right.set(xlabel="coverage (surest rows first)", ylabel="wrong decisions", title="Risk-coverage of U", xlim=(0, 1))
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    save(plt, figure, file)


def ablations(plt, report, file):
    found = report["ablations"]
    rows = found["variants"][::-1]
    figure, axes = plt.subplots(figsize=(6.6, 0.8 + 0.36 * len(rows)))
    colours = {"tuned end to end": GREEN, "layer-local": BLUE, "no controller": GREY}
    axes.barh([r["name"] for r in rows], [r["delta"] for r in rows], xerr=[r["error"] or 0 for r in rows],
              color=[colours[r["stage"]] for r in rows], error_kw={"capsize": 2, "linewidth": 1})
    for i, r in enumerate(rows):
        axes.text(max(0, r["delta"]) + (r["error"] or 0), i, f"  {r['delta']:+.4f} at {r['full']:.3f}", va="center", fontsize=7.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in colours.values()]
    axes.legend(handles, list(colours), fontsize=8, loc="best")
    axes.set(xlabel="loss, nats a token (Python, closed loop); number: loss at full share",
             title=f"Ablations at full share {found['share']:g}, {found['length']} tokens")
    axes.set_xlim(right=1.25 * max(r["delta"] + (r["error"] or 0) for r in rows))
    axes.grid(axis="y")
    save(plt, figure, file)


def smoothed(values, width=8):
    return [sum(values[max(0, i - width + 1):i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def training(plt, report, file):
    found = report["training"]["curves"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for length, colour in zip(sorted({v[1] for v in found["maps"]}), (GREEN, BLUE, ORANGE, RED)):
        part = [v for v in found["maps"] if v[1] == length]
        left.plot([v[0] for v in part], [v[2] for v in part], ".-", color=colour, markersize=3, label=f"{length} tokens", linewidth=1.2)
    left.set(xlabel="step", ylabel="squared error over local's", title="Feature maps", ylim=(0, 1.5))
    left.legend(fontsize=8)
    steps, kls = [v[0] for v in found["tune"]], [v[2] for v in found["tune"]]
    right.plot(steps, kls, ".", color=GREY, markersize=3, label="KL of a text")
    right.plot(steps, smoothed(kls), color=BLUE, label="mean of 8")
    right.set(xlabel="step", ylabel="KL to the unmodified model, nats", title="Tuning, end to end", ylim=(0, 1.1 * max(kls)))
    right.legend(fontsize=8, loc="upper right")
    share = right.twinx()
    share.plot(steps, smoothed([v[3] for v in found["tune"]]), color=ORANGE, linewidth=1)
    share.set_ylabel("full share, mean of 8", color=ORANGE)
    share.set_ylim(0, 0.4)
    share.grid(False)
    save(plt, figure, file)


# file -> function, what must be in the report
PLOTS = {
    "curve.png": (curve, ("curve",)), "heat.png": (heat, ("quality", "mix")), "pass-keys.png": (pass_keys, ("pass_keys",)),
    "reliability.png": (reliability, ("uncertainty",)), "ablations.png": (ablations, ("ablations",)),
    "training.png": (training, ("training",)),
}


def draw(report, directory):
    """Every plot that the report has figures for -> names of the files."""
    plt, drawn = pyplot(), []
    for name, (function, needs) in PLOTS.items():
        if all(report.get(part) for part in needs) and (name != "training.png" or report["training"]["curves"].get("tune")):
            function(plt, report, directory / name)
            drawn.append(name)
    return drawn
