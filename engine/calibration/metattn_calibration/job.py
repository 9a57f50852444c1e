"""What every training stage is given."""

import dataclasses

from .model import Model
from .retrofit import Retrofit
from .run import Run


@dataclasses.dataclass
class Job:
    run: Run
    model: Model
    tokenizer: object
    found: list         # data.Source, to train on
    held: list          # data.Source, to choose offsets on
    retrofit: Retrofit  # what is trained, in place
