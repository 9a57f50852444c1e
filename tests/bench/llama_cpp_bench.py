"""Times llama.cpp through llama-cpp-python's low-level API and prints one JSON object on stdout.

What is timed is llama_decode alone: a prefill of P tokens in one call on an empty cache, and N calls of one token
each at context C. Prompts are distinct stretches of a real text. Both settings of flash attention are run.
"""

import argparse
import ctypes
import json
import math
import statistics
import sys
import time

import llama_cpp


class Session:
    """One model with one context; positions of sequence 0 are counted here."""

    def __init__(self, model, context_tokens, threads, flash):
        self.model = model
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        flash_enum = "LLAMA_FLASH_ATTN_TYPE_ENABLED" if flash else "LLAMA_FLASH_ATTN_TYPE_DISABLED"
        if hasattr(params, "flash_attn_type"):
            params.flash_attn_type = getattr(llama_cpp, flash_enum, int(flash))
        else:
            params.flash_attn = flash
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            sys.exit("llama.cpp could not make a context")
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.position = 0

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def decode(self, tokens):
        """Seconds of one llama_decode call; logits of the last token only."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == len(tokens) - 1
        begin = time.perf_counter()
        code = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        seconds = time.perf_counter() - begin
        if code != 0:
            sys.exit(f"llama_decode failed with {code} at position {self.position}")
        self.position += len(tokens)
        return seconds

    def feed(self, tokens):
        for begin in range(0, len(tokens), 512):
            self.decode(tokens[begin:begin + 512])

    def greedy(self):
        vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        values = [logits[i] for i in range(vocab)]
        best = max(range(vocab), key=values.__getitem__)
        if not math.isfinite(values[best]):
            sys.exit("llama.cpp's logits are not finite")
        return best


    def continuation(self, count):
        """The text of the next `count` greedy tokens."""
        vocab, text = llama_cpp.llama_model_get_vocab(self.model), b""
        for _ in range(count):
            token = self.greedy()
            piece = ctypes.create_string_buffer(256)
            length = llama_cpp.llama_token_to_piece(vocab, token, piece, len(piece), 0, True)
            text += piece.raw[:length]
            self.decode([token])
        return text.decode(errors="replace")


def text_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def tokenize(model, text):
    vocab = llama_cpp.llama_model_get_vocab(model)
    data = text.encode()
    room = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), False, False)
    if count < 0:
        sys.exit("llama.cpp could not tokenise the text")
    return list(room[:count])


def measure(session, tokens, args):
    """Prefill and decode figures of one setting; the best of `repeats`, each on text not used before."""
    prefill, steps, cursor = [], [], 0
    session.decode(tokens[-64:])  # touches the weights once
    for _ in range(args.repeats):
        session.clear()
        if args.prompt_tokens:
            prefill.append(session.decode(tokens[cursor:cursor + args.prompt_tokens]))
            cursor += args.prompt_tokens
        session.clear()
        session.feed(tokens[cursor:cursor + args.context])
        cursor += args.context
        steps.append([session.decode([tokens[cursor + i]]) for i in range(args.decode_tokens)])
        cursor += args.decode_tokens
    best = min(steps, key=sum) if args.decode_tokens else []
    return {
        "prefill_tokens_per_s": args.prompt_tokens / min(prefill) if prefill else None,
        "decode_tokens_per_s": len(best) / sum(best) if best else None,
        "decode_step_ms": {"p50": statistics.median(best) * 1e3} if best else None,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", help="file that prompts are cut from")
    parser.add_argument("--prompt", help="with --greedy: the text to continue")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--greedy", type=int, default=0, help="only continue --prompt by so many tokens")
    args = parser.parse_args()
    if args.prompt_tokens > 512:
        sys.exit("--prompt-tokens: at most 512, one llama_decode call")

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp could not load {args.model}")
    tokens = tokenize(model, args.prompt if args.greedy else text_of(args.text))
    needed = args.repeats * (args.prompt_tokens + args.context + args.decode_tokens) + 64
    if not args.greedy and len(tokens) < needed:
        sys.exit(f"{args.text} has {len(tokens)} tokens, {needed} are needed")

    result = {"engine": f"llama-cpp-python {llama_cpp.__version__}",
              "system": llama_cpp.llama_print_system_info().decode()}
    length = max(512, args.context + args.decode_tokens) + 64
    for flash in (False, True):
        session = Session(model, length, args.threads, flash)
        name = "flash_on" if flash else "flash_off"
        if args.greedy:
            session.feed(tokens)
            result[name] = session.continuation(args.greedy)
        else:
            result[name] = measure(session, tokens, args)
        session.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
