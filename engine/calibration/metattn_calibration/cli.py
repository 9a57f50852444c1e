"""metattn-calibrate: the command line."""

import argparse
import json
import sys

import torch

from . import checkpoint, data, evaluate, export, pipeline, untrained, wikitext
from .errors import CalibrationError
from .model import Model
from .paper import command as paper
from .paper import report as paper_report
from .prompts import HELD_OUT, PASS_KEYS
from .report import command as report


def _untrained(args):
    loaded = checkpoint.load(args.model)
    shares = untrained.write(loaded, args.out, args.seed, feature_map=args.feature_map)
    print(json.dumps({"out": args.out, "shares": [round(s, 4) for s in shares]}))


def _train(args):
    scale = args.minutes / pipeline.REFERENCE_MINUTES if args.steps_scale is None else args.steps_scale
    options = pipeline.Options(
        args.model, args.text, args.out, args.docs, args.seed, args.share, args.eta, scale, args.feature_map,
        args.max_length, args.start_from, args.price, quiet=args.quiet)
    print(json.dumps(pipeline.train(options)))


def _eval(args):
    loaded = checkpoint.load(args.model)
    retrofit, policy, _ = export.read(args.controller, loaded.config)
    if args.eta is not None:
        policy.eta = args.eta
    policy.offsets[..., 0] += args.full_offset
    found = data.sources(loaded.tokenizer, args.text, "none")
    keys = (args.forms, args.key_length or args.length, args.trials) if args.trials else None
    model = Model(loaded, {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype])
    subject = evaluate.Subject(model, loaded.tokenizer, retrofit, policy)
    print(json.dumps(evaluate.evaluate(subject, found, args.length, args.count, keys)))


def _paper(args):
    options = paper.Options(args.out, args.text, args.minutes, args.steps, args.seed, args.beta_elbo, args.engine,
                            args.engine_device, windows=args.windows, quiet=args.quiet)
    print(paper_report.markdown(paper.run(options)), end="")


def parser():
    top = argparse.ArgumentParser(prog="metattn-calibrate", description=__doc__)
    top.add_argument("--threads", type=int, default=2, help="CPU threads (part of what makes a run repeatable)")
    commands = top.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("train", help="train a controller; resumes when the same command was interrupted")
    sub.add_argument("--model", required=True, help="GGUF file or Hugging Face directory")
    sub.add_argument("--text", nargs="+", default=[], metavar="FILE[:FROM-TO]", help="training text; FROM-TO in percent")
    sub.add_argument("--docs", default="auto", help="non-novel text: auto (this machine's documentation), none, or a folder")
    sub.add_argument("--out", required=True, help="the controller directory")
    sub.add_argument("--minutes", type=float, default=pipeline.REFERENCE_MINUTES,
                     help="scales the step counts: what they take on two idle cores with AMX")
    sub.add_argument("--steps-scale", type=float, help="the scale itself instead of --minutes")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--share", type=float, default=0.17, help="wanted share of full rows beyond the window")
    sub.add_argument("--eta", type=float, default=1.0, help="uncertainty from which rows read everything; 1: no gate")
    sub.add_argument("--feature-map", choices=("hedgehog", "elu1"), default="hedgehog")
    sub.add_argument("--max-length", type=int, default=8192)
    sub.add_argument("--start-from", metavar="DIR", help="go on from this controller: end-to-end tuning and offsets "
                     "only; with --minutes 0 offsets alone")
    sub.add_argument("--price", type=float, help="of full rows when tuning begins; default: what the first run ended with, else .06")
    sub.add_argument("--quiet", action="store_true")
    sub.set_defaults(run=_train)
    sub = commands.add_parser("eval", help="closed-loop loss, shares and pass keys as one JSON object")
    sub.add_argument("--model", required=True)
    sub.add_argument("--controller", required=True)
    sub.add_argument("--text", nargs="+", required=True, metavar="FILE[:FROM-TO]")
    sub.add_argument("--length", type=int, nargs="+", default=[4096])
    sub.add_argument("--count", type=int, default=3, help="excerpts of each text")
    sub.add_argument("--trials", type=int, default=0, help="pass keys a cell; 0: none")
    sub.add_argument("--forms", nargs="+", default=["pass key", "chat"], choices=sorted({**PASS_KEYS, **HELD_OUT}),
                     help=f"{', '.join(sorted(HELD_OUT))} are never trained on")
    sub.add_argument("--key-length", type=int, nargs="+")
    sub.add_argument("--eta", type=float, help="another gate than the controller's")
    sub.add_argument("--full-offset", type=float, default=0.0, help="added to every offset of full")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 where the CPU has it")
    sub.set_defaults(run=_eval)
    report.add_arguments(commands.add_parser("report", help="Markdown, plots and JSON: what a controller costs and saves"))
    sub = commands.add_parser("untrained", help="write a valid but random controller, for tests of the engine")
    sub.add_argument("--model", required=True)
    sub.add_argument("--out", required=True)
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--feature-map", choices=("hedgehog", "elu1"), default="hedgehog")
    sub.set_defaults(run=_untrained)
    wikitext.add_arguments(commands.add_parser("detokenise", help="WikiText as running text: no spaces around marks, no <unk>"))
    sub = commands.add_parser("paper", help="the paper's own setting from scratch: train, report, export")
    sub.add_argument("--text", metavar="FILE[:FROM-TO]", help="default: this machine's documentation")
    sub.add_argument("--out", default="paper", help="folder for report.md, report.json and the exported models")
    sub.add_argument("--minutes", type=float, default=paper.Options.minutes,
                     help="scales the step count: what it takes on two idle cores")
    sub.add_argument("--steps", type=int, help="the step count itself instead of --minutes")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--beta-elbo", type=float, default=paper.Options.beta_elbo, help="weight of the KL to the prior")
    sub.add_argument("--windows", type=int, default=paper.WINDOWS, help="held-out windows at most")
    sub.add_argument("--engine", metavar="PATH", help="a metattn binary: runs the exports and compares")
    sub.add_argument("--engine-device", choices=("ref", "cpu"), default="ref")
    sub.add_argument("--quiet", action="store_true")
    sub.set_defaults(run=_paper)
    return top


def main(argv=None):
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        return args.run(args) or 0
    except CalibrationError as error:
        print(f"metattn-calibrate: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
