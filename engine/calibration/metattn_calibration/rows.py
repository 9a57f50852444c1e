"""Stage 3a: sampled rows with everything a controller is trained on, from the model's own activations."""

import dataclasses

import torch

from . import prompts
from .attention import attend_causal
from .mechanisms import squared_error
from .retrofit import rows_of

KEEP = 0.25        # of eligible rows; rows that predict an answer are all kept
LENGTHS = (4096, 8192, 2048)


@dataclasses.dataclass
class LayerRows:
    x: torch.Tensor        # [N, D] bfloat16
    scalars: torch.Tensor  # [Hkv, N, S]
    linear: torch.Tensor   # squared errors [Hkv, N]
    local: torch.Tensor


@dataclasses.dataclass
class Sample:
    layers: list           # LayerRows
    weights: torch.Tensor  # [N]


@torch.no_grad()
def collect(job, texts, lengths=LENGTHS, draw=prompts.mixed):
    """Not saved: collecting again gives the same rows. draw(tokenizer, sources, length, rng) -> kind, prompt."""
    stage, run, retrofit, config = "rows", job.run, job.retrofit, job.model.config
    first, kv_heads, parts, weights = retrofit.geometry.first, config.kv_heads, [[] for _ in range(config.layers)], []
    for step in range(texts):
        length = lengths[step % len(lengths)]
        kind, prompt = draw(job.tokenizer, job.found, length, run.rng(stage, step))
        eligible = prompt.weights[first:]
        kept = (torch.rand(len(eligible), generator=run.generator(stage, step)) < KEEP) | (eligible > 1)
        kept = kept.nonzero()[:, 0]

        def attention(layer, x, q, k, v):
            full, rows = attend_causal(q, k, v)[0], rows_of(retrofit, layer, q, k, v)
            exact = full[:, first:][:, kept]
            parts[layer].append((x[first:][kept].bfloat16(), rows.scalars[:, kept],
                                 squared_error(rows.o_linear[:, kept], exact, kv_heads),
                                 squared_error(rows.o_near[:, first:][:, kept], exact, kv_heads)))
            return full

        job.model.hidden(prompt.ids, attention)
        weights.append(eligible[kept])
        run.progress(stage, step + 1, texts, f"{kind}, {len(kept)} rows",
                     share=length * len(lengths) / sum(lengths) / texts)
    layers = [LayerRows(torch.cat([p[0] for p in part]), *(torch.cat([p[i] for p in part], 1) for i in (1, 2, 3)))
              for part in parts]
    return Sample(layers, torch.cat(weights))
