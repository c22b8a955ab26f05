"""The sizes that layers of Flax NNX and Equinox keep beside their arrays."""

from collections.abc import Callable
from typing import Any

import jax


def _nnx_conv(m: Any) -> dict[str, Any]:
    *_, into, out = shape = m.kernel.shape
    groups = m.feature_group_count
    if into == 1 and groups > 1:  # depthwise: a group for each channel left
        groups = out // (m.out_features // groups)
    return {
        "kernel_shape": shape, "in_features": into * groups, "out_features": out,
        "feature_group_count": groups,
    }  # fmt: skip


def _nnx_general(m: Any) -> dict[str, Any]:
    shape, n = m.kernel.shape, len(m.out_features)
    return {"in_features": shape[: len(shape) - n], "out_features": shape[len(shape) - n :]}


def _nnx_attention(m: Any) -> dict[str, Any]:
    into, heads, size = m.query.kernel.shape
    return {
        "in_features": into, "num_heads": heads, "head_dim": size, "qkv_features": heads * size,
        "in_kv_features": m.key.kernel.shape[0], "num_kv_heads": m.key.kernel.shape[1],
        "out_features": m.out.kernel.shape[-1],
    }  # fmt: skip


def _nnx_cell(m: Any) -> dict[str, Any]:
    sizes = m.dense_i.kernel.shape[0], m.dense_h.kernel.shape[0]
    return dict(zip(("in_features", "hidden_features"), sizes, strict=True))


def _eqx_cell(m: Any) -> dict[str, Any]:
    return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}


def _eqx_conv(m: Any) -> dict[str, Any]:
    out, into, *_ = m.weight.shape
    groups = m.groups
    if into == 1 and groups > 1:
        groups = out // (m.out_channels // groups)
    return {"in_channels": into * groups, "out_channels": out, "groups": groups}


def _eqx_linear(m: Any) -> dict[str, Any]:
    scalar = {"scalar": 1}
    out, into = m.weight.shape
    return {
        name: n
        for name, n in (("in_features", into), ("out_features", out))
        if getattr(m, name) not in scalar
    }


def _eqx_attention(m: Any) -> dict[str, Any]:
    return {
        "num_heads": m.query_proj.weight.shape[0] // m.qk_size,
        "query_size": m.query_proj.weight.shape[1], "key_size": m.key_proj.weight.shape[1],
        "value_size": m.value_proj.weight.shape[1], "output_size": m.output_proj.weight.shape[0],
    }  # fmt: skip


_SIZES: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
    ("flax", "Linear"): lambda m: dict(
        zip(("in_features", "out_features"), m.kernel.shape, strict=True)
    ),
    ("flax", "LinearGeneral"): _nnx_general,
    ("flax", "Einsum"): lambda m: {"kernel_shape": m.kernel.shape},
    ("flax", "Conv"): _nnx_conv,
    ("flax", "ConvTranspose"): lambda m: {
        "kernel_shape": m.kernel.shape,
        "in_features": m.kernel.shape[-1 if m.transpose_kernel else -2],
        "out_features": m.kernel.shape[-2 if m.transpose_kernel else -1],
    },
    ("flax", "BatchNorm"): lambda m: {"num_features": m.mean.shape[0]},
    ("flax", "GroupNorm"): lambda m: {"num_groups": m.scale.shape[0] // m.group_size},
    ("flax", "Embed"): lambda m: dict(
        zip(("num_embeddings", "features"), m.embedding.shape, strict=True)
    ),
    ("flax", "MultiHeadAttention"): _nnx_attention,
    ("flax", "LSTMCell"): lambda m: {
        "in_features": m.ii.kernel.shape[0],
        "hidden_features": m.hi.kernel.shape[0],
    },
    **{("flax", name): _nnx_cell for name in ("OptimizedLSTMCell", "GRUCell", "SimpleCell")},
    **{("equinox", name): _eqx_cell for name in ("GRUCell", "LSTMCell")},
    ("equinox", "Linear"): _eqx_linear,
    ("equinox", "GroupNorm"): lambda m: {
        "groups": m.weight.shape[0] * m.groups // m.channels,
        "channels": m.weight.shape[0],
    },
    ("equinox", "MultiheadAttention"): _eqx_attention,
    **{("equinox", f"Conv{n}d"): _eqx_conv for n in (1, 2, 3)},
    ("equinox", "Conv"): _eqx_conv,
}


# Of each layer an array, and how many axes it has where layers are not stacked.
_RANKS: dict[tuple[str, str], Callable[[Any], tuple[Any, int]]] = {
    ("flax", "Linear"): lambda m: (m.kernel, 2),
    ("flax", "LinearGeneral"): lambda m: (m.kernel, len(m.in_features) + len(m.out_features)),
    ("flax", "Einsum"): lambda m: (m.kernel, len(m.kernel_shape)),
    ("flax", "Conv"): lambda m: (m.kernel, len(m.kernel_shape)),
    ("flax", "ConvTranspose"): lambda m: (m.kernel, len(m.kernel_shape)),
    ("flax", "BatchNorm"): lambda m: (m.mean, 1),
    ("flax", "GroupNorm"): lambda m: (m.scale, 1),
    ("flax", "Embed"): lambda m: (m.embedding, 2),
    ("flax", "MultiHeadAttention"): lambda m: (m.query.kernel, 3),
    ("flax", "LSTMCell"): lambda m: (m.hi.kernel, 2),
    **{
        ("flax", name): lambda m: (m.dense_h.kernel, 2)
        for name in ("OptimizedLSTMCell", "GRUCell", "SimpleCell")
    },
    **{("equinox", name): lambda m: (m.weight_hh, 2) for name in ("GRUCell", "LSTMCell")},
    ("equinox", "Linear"): lambda m: (m.weight, 2),
    ("equinox", "GroupNorm"): lambda m: (m.weight, 1),
    ("equinox", "MultiheadAttention"): lambda m: (m.query_proj.weight, 2),
    **{
        ("equinox", name): lambda m: (m.weight, m.num_spatial_dims + 2)
        for name in ("Conv", "Conv1d", "Conv2d", "Conv3d")
    },
}


class _One:
    """A layer of a stack (`nnx.vmap`, `eqx.filter_vmap`): its arrays without the leading axes."""

    def __init__(self, stack: Any, axes: int) -> None:
        self._stack, self._axes = stack, axes

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stack, name)
        if hasattr(found, "shape") and hasattr(found, "dtype"):
            return jax.ShapeDtypeStruct(found.shape[self._axes :], found.dtype)
        inner = (type(found).__module__.partition(".")[0], type(found).__name__) in _SIZES
        return _One(found, self._axes) if inner else found


def resize(layer: Any) -> None:
    """Brings the sizes that a layer of a framework keeps in line with its arrays."""
    package = type(layer).__module__.partition(".")[0]
    sizes = _SIZES.get((package, type(layer).__name__))
    if sizes is None:
        return
    array, rank = _RANKS[package, type(layer).__name__](layer)
    if array is None:  # a normalisation without a scale keeps nothing to read a size from
        return
    for name, value in sizes(_One(layer, array.ndim - rank)).items():
        if hasattr(layer, name) and getattr(layer, name) != value:
            object.__setattr__(layer, name, value)
