"""Synthetic retrieval texts: pass keys, key-value lookups, and passages that come back later.

A prompt is made of tokens and weights: weight i belongs to the row that predicts token i + 1. Rows that predict an
answer weigh ANSWER_WEIGHT. HELD_OUT forms are for evaluation only and are never trained on.
"""

import dataclasses

import torch

from . import data

ANSWER_WEIGHT = 10.0

# what is said once in the text, what is asked at its end; {v} is the value
PASS_KEYS = {
    "pass key": (" The pass key is {v}. Remember it. ", "\n\nThe pass key is"),
    "question": (" The secret code is {v}. ", "\n\nQuestion: What is the secret code?\nAnswer: The secret code is"),
    "note": (" (Note: the number of the locker is {v}.) ", "\n\nAs noted above, the number of the locker is"),
    "access": ("\nImportant: the access code of the building is {v}. Keep it in mind.\n",
               "\n\nThe access code of the building is"),
}
HELD_OUT = {
    "vault": (" One more fact: the vault opens with {v}. ", "\n\nEverybody should know by now that the vault opens with"),
    "chat": (" The pass key is {v}. Remember it. ",
             "<|im_end|>\n<|im_start|>user\nWhat is the pass key mentioned in the text?<|im_end|>\n"
             "<|im_start|>assistant\nThe pass key is"),
}
CHAT_BEGIN = "<|im_start|>user\nThere is a pass key hidden in the following text. Memorise it.\n\n"
LOOKUPS = [
    (" The pass key for {k} is {v}. Remember it. ", "\n\nThe pass key for {k} is"),
    (" The code of {k} is {v}. ", "\n\nThe code of {k} is"),
    (" The secret number for {k} is {v}, do not forget it. ", "\n\nThe secret number for {k} is"),
    (" One fact: {k} has the magic number {v}. ", "\n\n{k} has the magic number"),
    ("\n{k}: {v}\n", "\n\n{k}:"),
]
NAMES = ("Amsterdam Athens Belgrade Bogota Brussels Bucharest Budapest Copenhagen Edinburgh Hamburg Helsinki Istanbul "
         "Jakarta Kyoto Melbourne Montreal Naples Nairobi Santiago Seville Toronto Valencia Warsaw Zurich").split()


@dataclasses.dataclass
class Prompt:
    ids: torch.Tensor
    weights: torch.Tensor  # float, one per token
    answer: int = 0        # tokens at the end that are one whole answer; 0: none


@dataclasses.dataclass
class Needle:
    form: str
    value: str
    depth: float  # 0: at the beginning of the text


def digits(count, rng):
    return "".join(rng.choice("0123456789") for _ in range(count))


def plain(ids):
    return Prompt(ids, torch.ones(len(ids)))


def _assemble(tokenizer, pieces, length):
    """pieces: (text, is an answer) in order; the tokens of the haystack pieces were cut to fit before."""
    ids, answer = [], []
    for piece, is_answer in pieces:
        tokens = tokenizer.encode(piece) if isinstance(piece, str) else piece
        ids += tokens
        answer += [is_answer] * len(tokens)
    ids, answer = ids[:length], answer[:length]
    weights = torch.ones(len(ids))
    weights[:-1][torch.tensor(answer[1:])] = ANSWER_WEIGHT
    return Prompt(torch.tensor(ids), weights)


def _hay(tokenizer, source, length, rng):
    ids = tokenizer.encode(data.words(source, length * 6, rng))
    return ids[:length]


def any_needle(rng):
    """Of the forms that are trained on."""
    return Needle(rng.choice(sorted(PASS_KEYS)), digits(rng.choice((4, 5, 5, 5, 6)), rng), rng.random())


def pass_key(tokenizer, source, length, rng, needle=None):
    """The needle once in the text, asked for at the end; exactly `length` tokens unless the source is shorter."""
    needle = needle or any_needle(rng)
    form, value, depth = needle.form, needle.value, needle.depth
    say, ask = {**PASS_KEYS, **HELD_OUT}[form]
    begin = tokenizer.encode(CHAT_BEGIN) if form == "chat" else []
    fact, question, answer = tokenizer.encode(say.format(v=value)), tokenizer.encode(ask), tokenizer.encode(" " + value)
    hay = _hay(tokenizer, source, length - len(begin) - len(fact) - len(question) - len(answer), rng)
    cut = int(len(hay) * depth)
    pieces = [(begin, False), (hay[:cut], False), (fact, False), (hay[cut:], False), (question, False), (answer, True)]
    prompt = _assemble(tokenizer, pieces, length)
    prompt.answer = len(answer)
    return prompt


def lookups(tokenizer, source, length, rng, count=5):
    """`count` key-value needles, all asked for at the end in another order."""
    say, ask = rng.choice(LOOKUPS)
    pairs = [(name, digits(rng.choice((4, 5, 5, 6)), rng)) for name in rng.sample(NAMES, count)]
    needles = [tokenizer.encode(say.format(k=k, v=v)) for k, v in pairs]
    tail = []
    for k, v in rng.sample(pairs, count):
        tail += [(tokenizer.encode(ask.format(k=k)), False), (tokenizer.encode(" " + v), True)]
    used = sum(map(len, needles)) + sum(len(t) for t, _ in tail)
    hay = _hay(tokenizer, source, length - used, rng)
    cuts = [0] + sorted(rng.randrange(len(hay) + 1) for _ in needles) + [len(hay)]
    pieces = []
    for begin, end, needle in zip(cuts, cuts[1:], needles + [None]):
        pieces.append((hay[begin:end], False))
        if needle is not None:
            pieces.append((needle, False))
    return _assemble(tokenizer, pieces + tail, length)


def repeats(source, length, rng, count=3):
    """An excerpt in which passages come again 300 tokens or more after they were first read."""
    ids = data.excerpt(source, length, rng).clone()
    for _ in range(count):
        size = min(rng.randrange(40, 160), length // 8)
        begin = rng.randrange(length // 2)
        least = min(begin + size + 300, length - size)
        to = rng.randrange(least, length - size + 1)
        ids[to:to + size] = ids[begin:begin + size].clone()
    return plain(ids)


MIX = (("text", 0.27), ("documentation", 0.31), ("repeats", 0.13), ("lookups", 0.17), ("pass key", 0.12))


def mixed(tokenizer, found, length, rng):
    """One training text of a random kind."""
    texts = [s for s in found if s.kind == "text"]
    docs = [s for s in found if s.kind == "documentation"] or texts
    kind = rng.choices([k for k, _ in MIX], [w for _, w in MIX])[0]
    if kind == "text":
        return kind, plain(data.excerpt(weighted(texts, rng), length, rng))
    if kind == "documentation":
        return kind, plain(data.excerpt(weighted(docs, rng), length, rng))
    source = weighted(texts if rng.random() < 0.6 else docs, rng)
    if kind == "repeats":
        return kind, repeats(source, length, rng)
    return kind, (lookups if kind == "lookups" else pass_key)(tokenizer, source, length, rng)


def weighted(found, rng):
    """A source, likelier the longer it is, but by the square root: small ones count too."""
    return rng.choices(found, [len(s.ids) ** 0.5 for s in found])[0]
