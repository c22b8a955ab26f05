"""From a configuration to an optax optimizer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import models
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.schedules import schedule
from dessilbi_jax.tree import leaf_paths


def make_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    Args:
        config: its `learning_rate`, `schedule`, `warmup`, `drop_at` and `drop_factor` are used.
        steps: updates in the whole run.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1, schedule="step")
        >>> rate = make_schedule(config, 100)
        >>> [round(float(rate(step)), 6) for step in (0, 49, 51, 76)]
        [0.05, 0.05, 0.005, 0.0005]
    """
    constant = round(config.grow_until * steps) if config.grow else 0
    behind = schedule(
        config.schedule,
        config.learning_rate,
        steps - constant,
        warmup=0.0 if constant else config.warmup,
        drop_at=config.drop_at,
        drop_factor=config.drop_factor,
    )
    if not constant:
        return behind
    # While a network grows its rate stays; its schedule is that of the tuning behind.
    growing = schedule("constant", config.learning_rate, steps, warmup=config.warmup)
    return optax.join_schedules([growing, behind], [constant])


def make_structure(
    config: TrainConfig, model: Any, input_shape: tuple[int, ...] | None = None
) -> dl.Structure | dl.Channels:
    """Returns what a group is in a run; for "channels" it is read from the network itself.

    Args:
        config: its `structure` is used.
        model: the network, with parameters and batch statistics.
        input_shape: the shape of an input, for a network that is not of `dessilbi_jax.models`.

    Example:
        >>> config = TrainConfig(
        ...     network="lenet300", dataset="digits", epochs=1, structure="channels")
        >>> model = models.build("lenet300", input_shape=(8, 8, 1), widths=(5,))
        >>> make_structure(config, model).groups.count
        5
    """
    if config.structure == "channels":
        return dl.channels(trace_channels(model, input_shape))
    return getattr(dl, config.structure)


def trace_channels(model: Any, input_shape: tuple[int, ...] | None = None) -> dl.ChannelGroups:
    """Returns the channels of a network; FLOPs are those of one row.

    Args:
        model: a network of `dessilbi_jax.models`, or another one.
        input_shape: of another one, the shape of an input.
    """
    return dl.channel_groups(model, example_of(model, input_shape))


def example_of(model: Any, input_shape: tuple[int, ...] | None) -> jax.ShapeDtypeStruct:
    """Returns shape and type of an input, which networks of our own tell themselves."""
    if hasattr(model, "input_shape"):
        return models.example_input(model)
    assert input_shape is not None
    return jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)


def make_optimizer(
    config: TrainConfig,
    steps: int,
    structure: dl.Structure | dl.Channels,
    *,
    settled: bool = False,
    lam: float | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` updates.

    sgd is `dessilbi` with the configuration's momentum and variant; adam is AdamW's chain with
    the coupling after Adam's scaling and before the learning rate. With `settle` W ends with
    exactly the budget.

    Args:
        config: of the run.
        steps: updates in the whole run.
        structure: from `make_structure`.
        settled: for a network that has been cut to its budget: all that it has stays.
        lam: λ of a growing run, in place of the configuration's.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1)
        >>> tx = make_optimizer(config, 100, dl.filters)
        >>> state = tx.init({"fc1": {"kernel": jax.numpy.ones((4, 3))}})
        >>> int(dl.get_state(state).count)
        0
    """
    rate = _rate(config, steps)
    threshold: Any = config.lam if lam is None else lam
    if threshold == "auto":
        threshold = dl.auto(density=config.density, steps=steps, at=config.at)
    coupling: dict[str, Any] = {
        "kappa": config.kappa,
        "nu": config.nu,
        "lam": threshold,
        "structure": structure,
        "lean": config.lean,
        "penalty": dl.group_lasso(sqrt_size=config.sqrt_size),
    }
    settle: bool | dl.Settle = False
    if config.settle is not None:
        begin, end = config.settle
        name, amount = config.budget or ("density", config.density)
        if isinstance(amount, float):
            name = {"weights": "density", "groups": "group_density"}.get(name, name)
        size: Any = {"density": 1.0} if settled else {name: amount}
        settle = dl.settle(**size, begin=begin, end=end, steps=steps)
    if config.optimizer == "adam":
        decay = optax.identity()
        if config.weight_decay:
            decay = optax.add_decayed_weights(config.weight_decay, mask=_matrices)
        if settle:
            # What keeps zeros has to be the last: the coupling is that of the chain below.
            adam = optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(rate))
            return optax.chain(*_clipping(config), dl.wrap(adam, rate, settle=settle, **coupling))
        return optax.chain(
            *_clipping(config),
            optax.scale_by_adam(),
            decay,
            dl.add_split_lbi(rate, **coupling),
            optax.scale_by_learning_rate(rate),
        )
    tx = dl.dessilbi(
        rate,
        momentum=config.momentum or None,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        variant=config.variant,
        settle=settle,
        **coupling,
    )
    return optax.chain(*_clipping(config), tx) if config.clip else tx


def growing_lam(config: TrainConfig, model: models.Network, steps: int, per_epoch: int) -> float:
    """The λ of a growing run: that number, or set by what moves between two looks.

    Of a group whose weights keep the norm n, V moves by T·n between two looks, T = Σ rate/ν. Of one
    that the loss does not need, the coupling takes W to zero as e^{−t}, and V moves by n at most,
    however long. With λ = 0.9·T·n, n the median norm at the start, only what the loss has kept
    large enters, as long as T is above 1.1. The authors' λ = 1 is this for T = 1.96 and filters of
    PyTorch's initial norm, 0.58.

    Raises:
        ValueError: T is smaller: the coupling is too loose for so few updates.
    """
    if config.lam != "auto":
        return float(config.lam)
    assert config.grow is not None
    rate, looks = make_schedule(config, steps), config.grow * per_epoch
    travel = float(sum(np.asarray(rate(i)) for i in range(looks))) / config.nu
    if travel < 1.1:
        raise ValueError(
            f"between two looks, of {config.grow} epochs each, W and V come together by a factor "
            f"of e^{travel:.2f} only, too little to tell which channels the loss needs: take "
            f"nu={_rounded(travel * config.nu / 2)} (--nu; {config.nu:g} now), or more epochs "
            "between looks (--grow)"
        )
    return 1.2 * _median_norm(model, joint=config.structure == "channels")


def _rounded(value: float) -> float:
    digits = 1 - math.floor(math.log10(value))
    return round(value, digits)


def _median_norm(model: models.Network, *, joint: bool) -> float:
    """The median over channels of the norm of what makes each: its kernels, or all its leaves."""
    groups = trace_channels(model)
    squares = np.zeros(groups.count)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for path, leaf in leaf_paths(params):
        array = np.square(np.asarray(leaf, np.float64))
        for axis in range(array.ndim):
            numbers = groups.numbers.get((path, axis))
            if numbers is None or (path, axis) in groups.reads or (array.ndim < 2 and not joint):
                continue
            by_position = array.sum(axis=tuple(i for i in range(array.ndim) if i != axis))
            np.add.at(squares, numbers[numbers >= 0], by_position[numbers >= 0])
    if not squares.any():
        raise ValueError("the network has no channels that could grow")
    return float(np.sqrt(np.median(squares[squares > 0])))


def make_retraining(config: TrainConfig, steps: int, masks: Any) -> optax.GradientTransformation:
    """Returns the same optimizer without Γ, which keeps what a ticket leaves out at zero.

    Args:
        config: of the retraining.
        steps: updates in all.
        masks: tree of bool arrays like the parameters, True = kept.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1)
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> tx = make_retraining(config, 10, {"w": jnp.array([True, False])})
        >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [0.949999988079071, 0.0]
    """
    scaled = optax.scale_by_learning_rate(_rate(config, steps))
    # The paper's decay is not multiplied by the learning rate: it stands behind it.
    outside = config.variant == "paper"
    sign = -1 if outside else 1
    decay = optax.identity()
    if config.weight_decay:
        decay = optax.add_decayed_weights(sign * config.weight_decay, mask=_matrices)
    if config.optimizer == "adam":
        links = [optax.scale_by_adam(), decay, scaled]
    else:
        momentum = optax.identity()
        if config.momentum:
            momentum = optax.trace(config.momentum, nesterov=config.nesterov)
        links = [momentum, scaled, decay] if outside else [decay, momentum, scaled]
    return optax.chain(*_clipping(config), *links, dl.keep_support(masks))


def _clipping(config: TrainConfig) -> list[optax.GradientTransformation]:
    return [optax.clip_by_global_norm(config.clip)] if config.clip else []


def _rate(config: TrainConfig, steps: int) -> float | optax.Schedule:
    """A constant rate as the number it is: λ's estimate then needs no sum over a schedule."""
    if config.schedule == "constant" and not config.warmup:
        return config.learning_rate
    return make_schedule(config, steps)


def _matrices(params: optax.Params) -> optax.Params:
    """Marks the leaves that weight decay is for: those of two axes or more."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)
