"""Linen modules at the widths of the variables that they are given."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Plan(Protocol):
    """What tells the shapes that leaves had before, as `dessilbi_jax.Plan` does."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By path."""


def fitted(fn: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    """A function with its Linen modules as wide as the variables they are given.

    A Linen module keeps its widths as numbers in its code (`nn.Dense(128)`) and refuses variables
    of other shapes. While `fn` runs, `nn.Dense`, `DenseGeneral`, `Conv`, `ConvTranspose`,
    `ConvLocal`, `Embed`, `GroupNorm`, `MultiHeadDotProductAttention` and the recurrent cells take
    their widths from their variables instead (`flax.linen.intercept_methods`). Other code that
    has a width in it, such as a `reshape`, stays as it is.

    Args:
        fn: anything that applies Linen modules: `model.apply`, a loss, a training step.
        plan: of the cut (`Slim.plan`): what the variables' shapes were before.

    Returns:
        The function; `fn` itself where Flax Linen has not been imported.

    Example:
        >>> import jax, jax.numpy as jnp, dessilbi_jax as dl
        >>> from flax import linen as nn
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> mask = {"params/layers_0/kernel": jnp.tile(jnp.arange(8) < 2, (4, 1))}
        >>> small = dl.slim(variables, mask, jnp.ones((1, 4)), fn=model.apply)
        >>> jax.tree.map(jnp.shape, small.model["params"]["layers_0"])
        {'bias': (2,), 'kernel': (4, 2)}
        >>> dl.fitted(model.apply, small.plan)(small.model, jnp.ones((5, 4))).shape
        (5, 3)
    """
    linen = sys.modules.get("flax.linen")
    if linen is None or (isinstance(fn, _Fitted) and fn.plan == plan):
        return fn
    return _Fitted(fn, plan)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What `fitted` gives."""

    fn: Callable[..., Any]
    plan: Plan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        linen = sys.modules["flax.linen"]
        with linen.intercept_methods(functools.partial(_intercepted, self.plan)):
            return self.fn(*args, **kwargs)


def _intercepted(
    plan: Plan, method: Callable[..., Any], args: Any, kwargs: Any, context: Any
) -> Any:
    module = context.module
    if module.scope is not None:
        _fit(module, plan)
        if type(module).__name__ == "RNN":  # it asks its cell for a first state
            _fit(module.cell, plan)
    return method(*args, **kwargs)


def _fit(module: Any, plan: Plan) -> None:
    """Gives a module the widths of its variables."""
    if not type(module).__module__.startswith("flax.linen") or module.scope is None:
        return
    sizes = _SIZES.get(type(module).__name__)
    params, path = module.variables.get("params", {}), "/".join(module.scope.path)
    if sizes is None or not params:  # as in init, which makes them
        return
    with contextlib.suppress(KeyError):  # a module that is used in another way than we know
        for name, value in sizes(module, params, path, plan).items():
            if getattr(module, name) is not None and getattr(module, name) != value:
                object.__setattr__(module, name, value)


def _conv(module: Any, params: Any, path: str, plan: Plan) -> dict[str, Any]:
    *_, into, out = params["kernel"].shape
    groups = module.feature_group_count
    if into == 1 and groups > 1:  # depthwise: a group for each channel left
        groups = out // (module.features // groups)
    return {"features": out, "feature_group_count": groups}


def _general(module: Any, params: Any, path: str, plan: Plan) -> dict[str, Any]:
    features = module.features
    count = 1 if isinstance(features, int) else len(features)
    shape = tuple(params["kernel"].shape[-count:])
    return {"features": shape[0] if isinstance(features, int) else shape}


def _group_norm(module: Any, params: Any, path: str, plan: Plan) -> dict[str, Any]:
    now = params["scale" if "scale" in params else "bias"].shape[-1]
    for name, shape in plan.shapes.items():
        if f"/{name}".endswith((f"/{path}/scale", f"/{path}/bias")):
            return {"num_groups": module.num_groups and module.num_groups * now // shape[-1]}
    return {}


def _attention(module: Any, params: Any, path: str, plan: Plan) -> dict[str, Any]:
    heads, size = params["query"]["kernel"].shape[-2:]
    return {
        "num_heads": heads, "qkv_features": heads * size,
        "out_features": params["out"]["kernel"].shape[-1],
    }  # fmt: skip


def _cell(module: Any, params: Any, path: str, plan: Plan) -> dict[str, Any]:
    kernel = next(params[name]["kernel"] for name in ("hi", "hr", "h", "hf") if name in params)
    return {"features": kernel.shape[0]}


_SIZES: dict[str, Callable[[Any, Any, str, Plan], dict[str, Any]]] = {
    "Dense": lambda m, p, *_: {"features": p["kernel"].shape[-1]},
    "DenseGeneral": _general,
    "Conv": _conv,
    "ConvLocal": lambda m, p, *_: {"features": p["kernel"].shape[-1]},
    "ConvTranspose": lambda m, p, *_: {
        "features": p["kernel"].shape[-2 if m.transpose_kernel else -1]
    },
    "Embed": lambda m, p, *_: dict(
        zip(("num_embeddings", "features"), p["embedding"].shape, strict=True)
    ),
    "GroupNorm": _group_norm,
    "MultiHeadDotProductAttention": _attention,
    "MultiHeadAttention": _attention,
    "SelfAttention": _attention,
    **dict.fromkeys(("LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell"), _cell),
}
