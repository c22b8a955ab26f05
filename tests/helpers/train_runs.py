"""A run small enough to take seconds, with everything on, and a progress that prints nothing."""

import contextlib
import io

import jax

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
    nu=100.0,
)


@contextlib.contextmanager
def in_haste():
    """Programs are not optimised: for a few steps of small networks that takes most of the time.

    What is to be the same bit for bit has to be compiled alike.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


class Quiet(Progress):
    """Keeps what would be printed."""

    def __init__(self):
        self.out = io.StringIO()
        super().__init__(self.out, lines=True)


class StopAt(Quiet):
    """Ends the run when an epoch's record has been written."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def epoch(self, line, epochs):
        if line["epoch"] == self.at:
            raise KeyboardInterrupt


# Hidden units that can be cut out.
CHANNELS = train.TrainConfig(
    network="lenet300",
    dataset="digits",
    widths=(16, 12),
    epochs=3,
    batch_size=64,
    learning_rate=0.1,
    nu=50.0,
    density=0.5,
    structure="channels",
)
