"""Bytes that attention reads for a row, by the engine's own rule (its routing_counts), from counts of decisions.

Only needed where the engine prints no number of its own: the last positions of a text, and forward passes in Python. Runs
of the engine hold it to the engine's count over all rows (measure.decisions).
"""

import dataclasses

import numpy as np

from ..errors import CalibrationError


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one KV head with its query group. In bytes."""
    window: int
    sinks: int
    block: int
    token: int     # K and V of one token
    state: int     # a linear state
    features: int  # feature maps and the normaliser: of every eligible row

    @classmethod
    def of(cls, description):
        """Of controller.json."""
        if description.get("linear_scope", "far") != "far":
            raise CalibrationError("controller.json: linear_scope is not 'far'; the report knows no other")
        base, learned = description["base_model"], description["feature_map"] == "hedgehog"
        d, group = base["head_dim"], base["heads"] // base["kv_heads"]
        f = 2 * d if learned else d
        block = description["block"] if description.get("window_scope", "block") == "block" else 1
        return cls(description["window"], description["sinks"], block, 4 * d, 4 * f * d,
                   (2 * group * d * d if learned else 0) + 4 * f)

    def far(self, position):
        """Tokens of the far span of rows at these positions; 0: not eligible."""
        frontier = np.maximum(0, position - self.window + 1) // self.block * self.block
        return np.maximum(0, frontier - self.sinks)

    def ratio(self, position, full, linear, cells):
        """Read over dense of rows at `position` [N], where of `cells` (layers x KV heads) each row sent full[N] to full and
        linear[N] to linear."""
        far, n = self.far(position), position + 1
        eligible = far > 0
        read = cells * (n - far) * self.token + eligible * (cells * self.features + full * far * self.token
                                                            + linear * self.state)
        return float(read.sum() / (cells * n * self.token).sum())
