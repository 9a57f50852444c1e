"""Compares greedy outputs of runs whose arithmetic may differ by rounding (rank counts, batches)."""

# Nats between the two best tokens, below which rounding may choose either. On a CPU with AMX, steps of five and more rows round
# activations to bf16: that moved logits of the random tiny model by up to 0.1 (bound of transformer_test: 0.85).
NEAR_TIE = 0.2


def greedy(client, prompt, tokens, **sampling):
    """(ids, gaps): gap[i] is how far the second best token lay behind at step i, in nats."""
    ids, gaps, texts = [], [], ""
    for message in client.stream(prompt, max_tokens=tokens, ignore_eos=True, logprobs=2, **sampling):
        texts += message.text
        for token in message.tokens:
            ids.append(token.id)
            gaps.append(token.top[0].logprob - token.top[1].logprob)
    assert len(ids) == tokens
    return ids, gaps


def follow(client, prompt, expected, **sampling):
    """Compares every step of `expected`, (ids, gaps): where a near tie went the other way, it goes on from the expected token.
    Returns how many did."""
    ids, gaps = expected
    begin, ties = 0, 0
    while begin < len(ids):
        found, _ = greedy(client, prompt + ids[:begin], len(ids) - begin, **sampling)
        step = next((i for i, (x, y) in enumerate(zip(found, ids[begin:])) if x != y), None)
        if step is None:
            break
        assert gaps[begin + step] < NEAR_TIE, (f"prompt of {len(prompt)}: step {begin + step}, where the best token leads by "
                                               f"{gaps[begin + step]:.4f} nats, gives {found[step]} for {ids[begin + step]}")
        ties += 1
        begin += step + 1
    return ties


def assert_same_but_for_near_ties(runs):
    """runs: {name: [(ids, gaps) of each prompt]}. Returns how many prompts parted at a near tie."""
    (first_name, first), *others = runs.items()
    parted = 0
    for name, run in others:
        for prompt, ((a, gaps), (b, _)) in enumerate(zip(first, run)):
            step = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
            if step is None:
                continue
            assert gaps[step] < NEAR_TIE, (f"prompt {prompt}: {first_name} and {name} part at step {step}, where the "
                                           f"best token leads by {gaps[step]:.4f} nats: {a[step]} against {b[step]}")
            parted += 1
    return parted
