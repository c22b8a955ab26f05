"""From a configuration to an optax optimizer."""

import jax
import optax

import dessilbi_jax as dl
from dessilbi_jax.train.config import TrainConfig


def make_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    Args:
        config: its `learning_rate`, `schedule`, `drop_at` and `drop_factor` are used.
        steps: updates in the whole run.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1, schedule="step")
        >>> rate = make_schedule(config, 100)
        >>> [round(float(rate(step)), 6) for step in (0, 49, 51, 76)]
        [0.05, 0.05, 0.005, 0.0005]
    """
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, steps)
    if config.schedule == "step":
        drops: dict[int, float] = {}
        for fraction in config.drop_at:
            boundary = int(fraction * steps)
            drops[boundary] = drops.get(boundary, 1.0) * config.drop_factor
        return optax.piecewise_constant_schedule(config.learning_rate, drops)
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` updates.

    sgd is `dessilbi` with the configuration's momentum and variant; adam is AdamW's chain with
    the coupling after Adam's scaling and before the learning rate.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1)
        >>> tx = make_optimizer(config, 100)
        >>> state = tx.init({"fc1": {"kernel": jax.numpy.ones((4, 3))}})
        >>> int(dl.get_state(state).count)
        0
    """
    # A constant rate is given as the number it is: λ's estimate then needs no sum over a schedule.
    constant = config.schedule == "constant"
    rate = config.learning_rate if constant else make_schedule(config, steps)
    auto = config.lam == "auto"
    coupling = {
        "kappa": config.kappa,
        "nu": config.nu,
        "lam": config.lam,
        "structure": getattr(dl, config.structure),
        "lean": config.lean,
        **({"density": config.density, "steps": steps, "at": config.at} if auto else {}),
    }
    if config.optimizer == "adam":
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(config.weight_decay, mask=_matrices)
            if config.weight_decay
            else optax.identity(),
            dl.add_split_lbi(rate, **coupling),
            optax.scale_by_learning_rate(rate),
        )
    return dl.dessilbi(
        rate,
        momentum=config.momentum or None,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        variant=config.variant,
        **coupling,
    )


def _matrices(params: optax.Params) -> optax.Params:
    """Marks the leaves that weight decay is for: those of two axes or more."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)
