"""Stage 1: what a squared error of one KV head's output costs in nats, one number per layer and KV head.

Fisher with labels drawn from the model itself: for g = d(-log p(y)) / d o and an output error e, E[(g . e)^2] / 2 is the
divergence that e causes, to second order. Measured on text (every row's loss) and on retrieval prompts (the loss of the
answers), because plain text alone hides the retrieval heads.
"""

import torch
import torch.nn.functional as F

from . import data, prompts
from .attention import attend_causal
from .mechanisms import near, squared_error
from .model import HEAD_ROWS

LENGTH = 2048


def divergence(model, ids, weights, geometry, generator):
    """One text -> predicted harm of local [layers, Hkv] summed over rows, and its squared error, likewise."""
    c, errors = model.config, []
    offsets = [torch.zeros(c.heads, len(ids), c.head_dim, requires_grad=True) for _ in range(c.layers)]

    def attention(layer, x, q, k, v):
        o = attend_causal(q, k, v)[0].float()
        with torch.no_grad():
            errors.append(near(q, k, v, geometry, scalars=False).o.float() - o)
        return o + offsets[layer]

    hidden = model.hidden(ids, attention)
    gradient = torch.zeros_like(hidden)
    with torch.no_grad():
        for begin in range(0, len(ids) - 1, HEAD_ROWS):
            end = min(begin + HEAD_ROWS, len(ids) - 1)
            p = model.logits(hidden[begin:end]).softmax(-1)
            drawn = torch.multinomial(p, 1, generator=generator)
            p.scatter_add_(1, drawn, -torch.ones_like(drawn, dtype=p.dtype))
            gradient[begin:end] = F.linear((p * weights[begin:end, None]).to(model.dtype), model.head.T).float()
    harm, squares = torch.zeros(c.layers, c.kv_heads), torch.zeros(c.layers, c.kv_heads)
    for layer, g in enumerate(torch.autograd.grad(hidden, offsets, gradient)):
        first = geometry.first
        projected = (g * errors[layer]).sum(-1).view(c.kv_heads, c.group, -1).sum(1)[:, first:]
        harm[layer] = projected.pow(2).sum(-1) / 2
        squares[layer] = squared_error(errors[layer][:, first:], torch.zeros(()), c.kv_heads).sum(-1)
    return harm, squares


def measure(job, texts, length=LENGTH):
    """-> sensitivities [layers, Hkv], half from text, half from retrieval. `texts` of each kind."""
    run, found, geometry, config = job.run, job.found, job.retrofit.geometry, job.model.config
    stage, steps, shape = "sensitivity", 2 * texts, (config.layers, config.kv_heads)
    state = run.load(stage) or {"step": 0, "sums": torch.zeros(2, 2, *shape), "rows": 0}
    sums, rows = state["sums"], state["rows"]
    for step in range(state["step"], steps):
        rng, retrieval = run.rng(stage, step), step % 2
        source = found[(step // 2) % len(found)]
        if retrieval:
            prompt = prompts.pass_key(job.tokenizer, source, length, rng) if step % 4 == 1 else \
                prompts.lookups(job.tokenizer, source, length, rng)
            weights = (prompt.weights > 1).float()
        else:
            prompt = prompts.plain(data.excerpt(source, length, rng))
            weights, rows = prompt.weights, rows + length - geometry.first
        harm, squares = divergence(job.model, prompt.ids, weights, geometry, run.generator(stage, step))
        sums[retrieval, 0] += harm
        sums[retrieval, 1] += squares
        run.save(stage, step + 1, steps, {"sums": sums, "rows": rows})
        run.progress(stage, step + 1, steps, "retrieval" if retrieval else "text")
    predicted = sums[0, 0].sum().item() / max(1, rows)
    text, retrieval = (sums[i, 0] / sums[i, 1].clamp(min=1e-30) for i in range(2))
    # scaled to the same predicted harm in total: rows that retrieve are few
    retrieval = retrieval * sums[0, 0].sum() / sums[1, 0].sum().clamp(min=1e-30)
    run.log(stage, predicted_local_loss=predicted, text=text.tolist(), retrieval=retrieval.tolist())
    return (text + retrieval) / 2
