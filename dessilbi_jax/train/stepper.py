"""Training from step to step, whoever looks on: a run, a retraining, a benchmark."""

from collections.abc import Callable
from typing import Any

from dessilbi_jax.train.feeds import Feed
from dessilbi_jax.train.step import TrainState


class Stepper:
    """A training under way. Of old states nothing is left: a step donates what it is given.

    Args:
        take: the compiled step, of `make_step`.
        feed: the training data in the order of the run.
        state: where it begins; its `step` says with which batch.

    Attributes:
        state: after the last step.
        step: updates made, as a number of the host: `state.step` would wait for the device.
    """

    def __init__(
        self, take: Callable[[TrainState, Any], TrainState], feed: Feed, state: TrainState
    ) -> None:
        self._take, self._feed = take, feed
        self.state, self.step = state, int(state.step)

    def advance(self, steps: int = 1) -> TrainState:
        """Makes so many updates and returns the state behind them."""
        for _ in range(steps):
            self.state = self._take(self.state, self._feed.at(self.step))
            self.step += 1
        return self.state
