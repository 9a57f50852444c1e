"""A valid controller directory without training: feature maps near the identity and random controllers.

For tests of the engine: all three mechanisms occur, and every number that matters to a decision is different from 0.
"""

import torch

from . import export
from .controller import Policy
from .model import Model
from .retrofit import Retrofit, RoutedAttention, rows_of

ROWS = 1024


@torch.no_grad()
def write(loaded, directory, seed=1, ids=None, feature_map="hedgehog", width=32):
    """ids: a text to standardise on; without one, random tokens."""
    config, model = loaded.config, Model(loaded)
    generator = torch.Generator().manual_seed(seed)
    if ids is None:
        ids = torch.randint(0, config.vocab, (min(ROWS, config.max_positions),), generator=generator)
    retrofit = Retrofit.fresh(config, feature_map=feature_map, seed=seed, width=width)

    def disturb(parameter, size):
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)

    for phi in retrofit.maps:
        for name, parameter in phi.named_parameters():
            disturb(parameter, 0.05 if name.startswith("w_") else 0.2)
    first = retrofit.geometry.first
    inner = RoutedAttention(retrofit)

    def standardise(layer, x, q, k, v):
        controller = retrofit.controllers[layer]
        controller.standardise(x[first:], rows_of(retrofit, layer, q, k, v).scalars)
        disturb(controller.out, 0.5), disturb(controller.bias, 0.1), disturb(controller.out_bias, 0.3)
        disturb(controller.x_skip, 0.03), disturb(controller.scalars_skip, 0.2)
        return inner(layer, x, q, k, v)

    model.hidden(ids, standardise)
    policy = Policy.neutral(config.layers, config.kv_heads)
    description = export.describe(loaded, retrofit, policy, inner.shares(), {"untrained": True, "seed": seed},
                                  config.max_positions)
    export.write(directory, export.tensors_of(retrofit), description)
    return inner.mean_shares()
