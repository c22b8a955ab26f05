"""The optimizers of the papers' Tables 1 and 2, from Optax wherever it has one.

Rates are the business of `benchmarks.classification`. l1 is 1e-3 · ‖W‖₁ and decay the
L2 term 1e-4 / 2 · ‖W‖², both on kernels and added to the loss.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from benchmarks.harness import masks
from dessilbi_jax.train.step import nothing

Tree = Any
Make = Callable[[optax.Schedule, int], optax.GradientTransformation]


class ScaleByAdaBoundState(NamedTuple):
    """Moments and the number of updates."""

    count: jax.Array
    mu: Tree
    nu: Tree


def scale_by_adabound(
    learning_rate: optax.ScalarOrSchedule,
    final_rate: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.999,
    gamma: float = 1e-3,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """The step of AdaBound (Luo et al. 2019), W' = W − this.

    clip(α √(1 − b2ᵗ)/(1 − b1ᵗ) / (√v + ε), lower, upper) · m with lower = final (1 − 1/(γt + 1))
    and upper = final (1 + 1/(γt)): Adam at first, SGD of rate `final_rate` in the end. As in the
    authors' program, `final_rate` follows the schedule in proportion.
    """

    def rate_at(count: jax.Array) -> Any:
        return learning_rate(count) if callable(learning_rate) else learning_rate

    def init(params: Tree) -> ScaleByAdaBoundState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ScaleByAdaBoundState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(
        grads: Tree, state: ScaleByAdaBoundState, params: Tree = None
    ) -> tuple[Tree, ScaleByAdaBoundState]:
        t = state.count + 1
        mu = optax.tree_utils.tree_update_moment(grads, state.mu, b1, 1)
        nu = optax.tree_utils.tree_update_moment(grads, state.nu, b2, 2)
        rate = rate_at(state.count)
        final = final_rate * rate / rate_at(jnp.zeros((), jnp.int32))
        step = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        lower, upper = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
        moved = jax.tree.map(
            lambda m, v: jnp.clip(step / (jnp.sqrt(v) + eps), lower, upper) * m, mu, nu
        )
        return moved, ScaleByAdaBoundState(t, mu, nu)

    return optax.GradientTransformation(init, update)


def adabound(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdaBound as an optimizer."""
    return optax.chain(scale_by_adabound(learning_rate), optax.scale(-1.0))


def l1(trained: Tree) -> jax.Array:
    """The l1 term of the papers' second row."""
    return 1e-3 * sum(jnp.abs(w).sum() for w in masks.kernels(trained))


def l2(trained: Tree) -> jax.Array:
    """Weight decay of 1e-4 as a term of the loss."""
    return 0.5e-4 * sum(jnp.square(w).sum() for w in masks.kernels(trained))


def _dessilbi(variant: Any = "toolbox", **kw: Any) -> Make:
    def make(rate: optax.Schedule, steps: int) -> optax.GradientTransformation:
        return dl.dessilbi(
            rate, kappa=1.0, nu=100.0, lam=dl.auto(density=0.1, steps=steps),
            structure=dl.filters, variant=variant, **kw,
        )  # fmt: skip

    return make


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A row of the classification table.

    Attributes:
        name: as in the papers.
        make: the optimizer from a schedule and the number of updates.
        rate: "sgd", "momentum", "adaptive" or "adagrad": whose peak it takes.
        penalty: added to the loss.
        mnist, cifar10: the accuracy published for LeNet-5 and ResNet-20, in percent.
    """

    name: str
    make: Make
    rate: str
    mnist: float
    cifar10: float
    penalty: Callable[[Tree], Any] = nothing

    @property
    def is_dessilbi(self) -> bool:
        """Whether its state has a Γ."""
        return self.name.startswith("DessiLBI")


def _plain(tx: Callable[..., optax.GradientTransformation], **kw: Any) -> Make:
    return lambda rate, steps: tx(rate, **kw)


OPTIMIZERS = (
    Optimizer("SGD naive", _plain(optax.sgd), "sgd", 98.87, 86.46),
    Optimizer("SGD l1", _plain(optax.sgd), "sgd", 98.52, 67.60, l1),
    Optimizer("SGD Mom", _plain(optax.sgd, momentum=0.9), "momentum", 99.16, 89.44),
    Optimizer("SGD Mom-Wd", _plain(optax.sgd, momentum=0.9), "momentum", 99.23, 90.31, l2),
    Optimizer(
        "SGD Nesterov", _plain(optax.sgd, momentum=0.9, nesterov=True), "momentum", 99.23, 90.18, l2
    ),
    Optimizer("Adam", _plain(optax.adam), "adaptive", 99.19, 89.14),
    Optimizer("AdaBound", _plain(adabound), "adaptive", 99.15, 87.89),
    Optimizer("Adagrad", _plain(optax.adagrad), "adagrad", 99.02, 88.17),
    Optimizer("AMSGrad", _plain(optax.amsgrad), "adaptive", 99.14, 88.68),
    Optimizer("RAdam", _plain(optax.radam), "adaptive", 99.08, 88.44),
    Optimizer("DessiLBI", _dessilbi(), "sgd", 99.02, 89.26),
    Optimizer("DessiLBI-Mom, toolbox", _dessilbi(momentum=0.9), "momentum", 99.19, 89.72),
    Optimizer("DessiLBI-Mom, paper", _dessilbi("paper", momentum=0.9), "momentum", 99.19, 89.72),
    Optimizer("DessiLBI-Mom-Wd, toolbox", _dessilbi(momentum=0.9), "momentum", 99.20, 89.95, l2),
    Optimizer(
        "DessiLBI-Mom-Wd, paper", _dessilbi("paper", momentum=0.9), "momentum", 99.20, 89.95, l2
    ),
)


@functools.lru_cache(16)
def made(name: str, rate: optax.Schedule, steps: int) -> optax.GradientTransformation:
    """An optimizer by name, one object for one schedule."""
    return next(o for o in OPTIMIZERS if o.name == name).make(rate, steps)
