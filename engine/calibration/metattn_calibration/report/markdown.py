"""report.md from report.json: tables, and words that follow from the figures."""


def signed(value, digits=4):
    return "-" if value is None else f"{value:+.{digits}f}"


def plain(value, digits=3):
    return "-" if value is None else f"{value:.{digits}f}"


def with_error(value, error):
    return signed(value) + ("" if error is None else f" ± {error:.4f}")


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def shares(row):
    return [plain(row.get(name)) for name in ("full", "linear", "local")]


def quality(report):
    found, rows = report["quality"], []
    for length, texts in found["lengths"].items():
        for name, row in texts.items():
            rows.append([length, f"**{name}**" if name == "mean" else name, row["windows"], plain(row["dense_nll"], 4),
                         with_error(row["delta"], row["error"]), *shares(row), plain(row["bytes_ratio"]),
                         with_error(row["decode_bytes"], row.get("decode_bytes_error")).lstrip("+")])
    head = ["tokens", "text", "windows", "unmodified NLL", "loss", "full", "linear", "local", "bytes, all rows", "bytes, decode"]
    text = ("## Quality and bytes\n\nIn the engine. Loss: NLL minus the unmodified model's on the same window, nats a token, ± the "
            "paired standard error over windows (the engine prints one NLL a window; of the mean: of both texts together). Shares: rows "
            "beyond the window over layers and KV heads. Bytes: read by attention over dense ones, near part, linear state and feature maps included; "
            "decode: of the last 64 positions of every window, counted from the recorded decisions by the engine's rule.\n\n"
            + table(head, rows))
    return text + seeds(found["seeds"])


def seeds(found):
    if not found:
        return ""
    lengths = list(found[0]["lengths"])
    rows = [[s["name"], s["seed"], *(x for n in lengths for x in (with_error(s["lengths"][n]["delta"], s["lengths"][n]["error"]),
                                                                  plain(s["lengths"][n]["full"])))] for s in found]
    out = "\n### Seeds\n\n" + table(["controller", "seed", *(x for n in lengths for x in (f"loss at {n}", "full"))], rows)
    for n in lengths:
        values = [s["lengths"][n]["delta"] for s in found]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
        out += f"\nAt {n}: mean {mean:+.4f}, standard deviation over seeds {plain(spread, 4)}, from {min(values):+.4f} to {max(values):+.4f}."
    return out + "\n"


def curve(report):
    found = report["curve"]
    names = {"offset": "tilt: offset added to full's score", "cost weight": "cost weight lambda", "random": "random rows (forced share)",
             "eta": "gate eta"}
    rows = [[names[p["kind"]], f"{p['value']:g}", plain(p["full"]), plain(p["linear"]), with_error(p["delta"], p["error"]),
             plain(p["bytes_ratio"])] for p in found["points"] if p["kind"] != "eta"]
    return ("## Loss against full share\n\n![curve](curve.png)\n\nEvery point is a run of the engine (`--cost-weight`, "
            "`--force-share`, or a copy of the controller whose offsets of full are shifted) on the same windows, "
            f"{found['windows']} of {found['length']} tokens.\n\n"
            + table(["how", "value", "full", "linear", "loss", "bytes, all rows"], rows))


def gate(report):
    rows = [[f"{p['eta']:g}", plain(p["full"]), signed(p["delta"]), signed(p["tilt_delta"]),
             with_error(p["gain"], p["gain_error"])] for p in report["curve"]["gate"]]
    inside = [p for p in report["curve"]["gate"] if p["gain"] is not None]
    judged = [p for p in inside if p["gain_error"]]
    better = [p for p in judged if p["gain"] > 2 * p["gain_error"]]
    worse = [p for p in judged if p["gain"] < -2 * p["gain_error"]]
    if inside and not judged:
        verdict = "Too few windows to judge."
    elif not judged:
        verdict = "The gate's points lie outside the tilt curve: nothing can be said."
    elif better and not worse:
        verdict = ("U as a gate gives something beyond the tilt at eta "
                   f"{', '.join(format(p['eta'], 'g') for p in better)}: less loss at the same share by more than two standard errors.")
    elif worse and not better:
        verdict = ("U as a gate is worse than the tilt: at eta "
                   f"{', '.join(format(p['eta'], 'g') for p in worse)} the tilt loses less at the same share (by more than two standard errors).")
    elif better:
        verdict = "The gate is better at some eta and worse at others."
    else:
        verdict = "U as a gate gives nothing beyond the tilt: no difference at the same share exceeds two standard errors."
    return ("### The gate\n\nRows with U >= eta read everything; tilt as shipped. `tilt at that share`: the tilt curve, interpolated. "
            "Gain: what the gate saves against it, paired by window.\n\n"
            + table(["eta", "full", "loss", "tilt at that share", "gain"], rows) + f"\n{verdict}\n")


def pass_keys(report):
    found = report["pass_keys"]
    rows = [[f"{c['form']}{' (never trained on)' if c['held_out'] else ''}", c["length"], c["trials"], c["dense"], c["routed"],
             c["both"], plain(c["full"])] for c in found["cells"]]
    total, parts = {}, []
    for c in found["cells"]:
        one = total.setdefault(c["form"], [0, 0])
        one[0] += c["dense"]
        one[1] += c["routed"]
    for form, (dense, routed) in [*total.items(), ("all", [sum(t[i] for t in total.values()) for i in range(2)])]:
        parts.append(f"{form}: {routed} of {dense}" + (f" ({100 * routed / dense:.1f} %)" if dense else ""))
    return ("## Retrieval\n\n![pass keys](pass-keys.png)\n\nOne key of five digits in running text, depths evenly spaced; found: "
            "all digits are the greedy answer of `metattn generate`.\n\n"
            + table(["form", "tokens", "trials", "unmodified", "routed", "both", "full share"], rows)
            + f"\nRouted against unmodified: {'; '.join(parts)}.\n")


def heat(report):
    return "## Where everything is read\n\n![full share by layer and head](heat.png)\n"


def uncertainty(report):
    u = report["uncertainty"]
    wrong, harm = u["wrong"], u["harm"]
    return ("## What U says\n\n![reliability](reliability.png)\n\n"
            f"{u['rows']} rows of {u['texts']} held-out texts, all layers and KV heads, on the unmodified model's activations. Right: argmax m is "
            "the cheapest mechanism whose predicted harm (sensitivity times squared error) is within training's limit; linear before "
            f"local before full. Labels full / linear / local: {' / '.join(plain(x) for x in u['labels'])}.\n\n"
            + table(["what", "value"], [
                ["accuracy of argmax m", plain(u["accuracy"])], ["mean max m", plain(u["mean_confidence"])],
                ["expected calibration error", plain(u["ece"])], ["mean U", plain(u["mean_uncertainty"])],
                ["rows with U >= eta", plain(u["gated"], 4)],
                ["area under risk-coverage (wrong decisions), by U", plain(wrong["area"], 4)],
                ["the same in random order / by who knows the answers", f"{plain(wrong['random_area'], 4)} / {plain(wrong['best_area'], 4)}"],
                ["predicted harm of decisions (nats a row), surest half / all",
                 f"{harm['risk'][len(harm['risk']) // 2 - 1]:.2e} / {harm['risk'][-1]:.2e}"]])
            + f"\nThe training objective mixes the prior in: it asks for max m of at most {plain(u['most_confidence'])} even where one mechanism "
            "is certain, and tuning afterwards follows the model's loss, not these labels. So max m is a score, not a frequency of "
            "these labels, as far as the curve departs from the diagonal.\n")


def ablations(report):
    found = report["ablations"]
    texts = list(found["variants"][0]["texts"])
    rows = [[v["name"], v["stage"], *shares(v), with_error(v["delta"], v["error"]), *(signed(v["texts"][t]) for t in texts),
             plain(v["bytes_ratio"])] for v in found["variants"]]
    return ("## Ablations\n\n![ablations](ablations.png)\n\nIn Python, closed loop, ± over blocks of 512 tokens. `layer-local`: trained here on the same "
            f"{found['rows']} sampled rows for {found['steps']} steps from the same seed, feature maps of the shipped controller, gate off, tilt "
            f"for a full share of {found['share']:g} on text kept aside; not tuned end to end. `tuned end to end`: the shipped controller as it is. "
            "Recipe: labels, prior and features as shipped. No prior: a flat Dirichlet. No linear: full and local only. Token-shared: one decision for all KV heads of a layer, from the scalars of all. "
            "All heads: decisions per KV head that read the scalars of all. Static heads: chosen by mean harm, as many as read the recipe's bytes. "
            "Oracle: full where the exact error harms most.\n\n"
            + table(["variant", "stage", "full", "linear", "local", "loss", *texts, "bytes, all rows"], rows))


def training(report):
    found = report["training"]
    facts, seconds = found["facts"], found["seconds"]
    cpu = found.get("cpu_seconds") or {}  # older reports have none
    cpu = cpu and {**cpu, "all": sum(cpu.values())}
    out = "## Training\n\n"
    if found["curves"].get("tune"):
        out += "![training](training.png)\n\n"
    if seconds:
        rows = [[stage, f"{s:.0f}", *([f"{cpu[stage]:.0f}"] if cpu else [])]
                for stage, s in [*seconds.items(), ("all", sum(seconds.values()))]]
        out += table(["stage", "seconds", *(["processor seconds"] if cpu else [])], rows)
        out += "\nCollecting rows is counted with the controllers.\n\n"
    if found["peak_gb"]:
        out += f"Peak memory {found['peak_gb']:.1f} GB. "
    out += f"Seed {facts.get('seed')}, {facts.get('threads')} threads, {facts.get('dtype')}. Texts: "
    out += "; ".join(f"{t['name']} ({t['tokens']} tokens)" for t in facts.get("texts", [])) + ".\n"
    return out


PARTS = (("quality", quality), ("curve", curve), ("curve", gate), ("pass_keys", pass_keys), ("quality", heat),
         ("uncertainty", uncertainty), ("ablations", ablations), ("training", training))


def write(report):
    about = report["about"]
    head = (f"# Routed attention: report on a controller\n\nModel {about['model']}, controller `{about['controller']}`"
            f" (window {about['window']}, sinks {about['sinks']}, eta {about['eta']:g}), engine {about['engine']}. Texts: {', '.join(about['texts'])}"
            f" (none of them in the calibration, if the caller chose so). Made by `metattn-calibrate report`; every figure is in report.json, "
            "`metattn-calibrate report --from report.json --out DIR` writes this again.\n")
    missing = [name for name in dict(PARTS) if not report.get(name)]
    if missing:
        head += f"\nNot measured in this run: {', '.join(m.replace('_', ' ') for m in missing)}.\n"
    if report.get("notes"):
        head += "\n" + "\n".join(f"- {note}" for note in report["notes"]) + "\n"
    return head + "".join("\n" + function(report) for part, function in PARTS if report.get(part))
