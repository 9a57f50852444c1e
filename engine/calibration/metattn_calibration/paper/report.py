"""report.json and report.md: our figures beside the paper's, the gate's curve, the engine's figures."""

PAPER = {"cost": 0.251, "baseline_cost": 0.593, "entropy": 0.433, "baseline_entropy": 0.558, "perplexity": 0.063}

DIFFERENCES = (
    "Blocks are Llama-like (RMSNorm, RoPE, SwiGLU, no biases), so that the engine runs the model unchanged.",
    "Data: the text named above, as bytes; the paper's corpus, steps and optimiser are not known to us.",
    "The window ({window} tokens), the heads ({heads}) and the controller's width ({width}) are ours.",
    "beta_elbo is ours ({beta_elbo}): the KL is averaged over tokens and summed over layers.",
    "Every row is routed, from position 0 on; costs are the paper's constants, whatever the position.",
    "The paper gives its cost under hard routing, projected; here are the soft mixture's and the hard choice's.",
    "\"Read\" replaces the constants by what a row reads over dense at its position (T = {length}): linear's state equals "
    "{state:.0f} tokens of K and V, so it saves nothing in the first half of such a context; a mixed row reads everything.",
    "The engine's bytes are what its kernels touch: the window is read for every row (it is the start of full and local), linear's "
    "odds for every row, and linear reads the keys of the 64-token page that is not in the state yet, here all of them. "
    "A mixed row reads all three mechanisms. None of that is in the paper's constants.",
)


def percent(x, sign=False):
    return f"{100 * x:{'+' if sign else ''}.1f} %"


def comparison(results):
    """-> rows (what, paper, ours soft, ours hard) of the three figures."""
    elbo, base = results["elbo"]["sweep"], results["baseline"]["sweep"]
    soft, hard = (elbo[0], base[0]), (elbo[-1], base[-1])

    def ratio(pair):
        return percent(pair[0]["perplexity"] / pair[1]["perplexity"] - 1, True)

    rows = [("projected cost, ELBO", percent(PAPER["cost"]), percent(soft[0]["cost"]), percent(hard[0]["cost"])),
            ("projected cost, baseline", percent(PAPER["baseline_cost"]), percent(soft[1]["cost"]), percent(hard[1]["cost"])),
            ("routing entropy, ELBO", percent(PAPER["entropy"]), percent(soft[0]["entropy"]), percent(hard[0]["entropy"])),
            ("routing entropy, baseline", percent(PAPER["baseline_entropy"]), percent(soft[1]["entropy"]),
             percent(hard[1]["entropy"])),
            ("perplexity, ELBO over baseline", percent(PAPER["perplexity"], True), ratio(soft), ratio(hard))]
    dense = results["dense"]["nll"]
    for name, found in (("ELBO", elbo), ("baseline", base)):
        over = [percent(f["perplexity"] / results["dense"]["perplexity"] - 1, True) for f in (found[0], found[-1])]
        rows.append((f"perplexity, {name} over full attention (NLL {dense:.4f})", "-", *over))
    return rows


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def sweep_rows(found):
    return [(f"{f['eta']:g}", f"{f['nll']:.4f}", f"{f['perplexity']:.3f}", percent(f["mixture"]), percent(f["cost"]),
             percent(f["read"]), " / ".join(f"{100 * f[k]:.0f}" for k in ("full", "linear", "local"))) for f in found]


def engine_rows(entries):
    rows = []
    for e in entries:
        ours, theirs = e["python"], e["engine"]
        rows.append((e["model"], "-" if "eta" not in ours else f"{ours['eta']:g}", e["device"], f"{ours['nll']:.6f}",
                     f"{theirs['nll']:.6f}", f"{theirs['nll'] - ours['nll']:+.1e}",
                     percent(ours["read"]) if "read" in ours else "100.0 %", percent(theirs["attention_bytes_ratio"]),
                     percent(theirs["attention_flops_ratio"])))
    return rows


def markdown(results):
    s = results["setting"]
    head = s["hidden"] // s["heads"]
    words = {**s, **results["training"], "state": (head * head + head) * 4 / (4 * head)}
    parts = ["# The paper's setting (arXiv 2605.28384), ours beside it",
             f"Text: {results['text']['name']} ({results['text']['kind']}), {results['text']['train']} bytes to train on, "
             f"{results['text']['windows']} held-out windows of {s['length']}. {results['training']['steps']} steps of "
             f"{results['training']['batch']} windows, seed {results['training']['seed']}, "
             f"beta_elbo {results['training']['beta_elbo']}.",
             table(("figure", "paper", "ours, soft mixture", "ours, hard"), comparison(results)),
             "Differences from the paper:\n" + "\n".join(f"- {d.format(**words)}" for d in DIFFERENCES)]
    columns = ("eta", "NLL", "perplexity", "mixed rows", "projected cost", "read", "full / linear / local, %")
    for name in ("elbo", "baseline"):
        parts += [f"## Gate, {name}: U < eta takes the most probable mechanism alone, the others the mixture",
                  table(columns, sweep_rows(results[name]["sweep"]))]
    if results.get("engine"):
        parts += ["## The same in the engine", table(
            ("model", "eta", "device", "NLL, Python", "NLL, engine", "difference", "read, Python", "attention bytes, engine",
             "multiplications, engine"), engine_rows(results["engine"]))]
    return "\n\n".join(parts) + "\n"
