"""A run small enough to take seconds, with everything on, and a progress that prints nothing."""

import io

from dessilbi_jax import train
from dessilbi_jax.train.progress import Progress

# Batch normalisation, augmentation, a schedule, filters and single weights: 10 steps an epoch.
TINY = train.TrainConfig(
    network="vgg-small",
    dataset="digits",
    widths=(6,),
    epochs=3,
    learning_rate=0.1,
    schedule="cosine",
    density=0.3,
    augment=True,
)


class Quiet(Progress):
    """Keeps what would be printed."""

    def __init__(self):
        self.out = io.StringIO()
        super().__init__(self.out, lines=True)
