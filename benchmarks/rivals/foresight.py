"""Pruning before any training."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.harness import masks
from benchmarks.harness.work import Work
from benchmarks.rivals.rival import Found, Rival, spent
from dessilbi_jax.train.step import Network

Tree = Any

CHUNK = 1024  # images whose gradient is taken at once


@functools.lru_cache(4)
def _gradient(network: Network) -> Callable[..., Tree]:
    gradient = jax.grad(network.loss, has_aux=True)
    return jax.jit(lambda *given: gradient(*given)[0])


def balanced(labels: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Random rows with as many of each class as of any other, give or take one."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), int)  # how many of its class come before
    for label in np.unique(labels):
        same = labels[order] == label
        turn[same] = np.arange(same.sum())
    return order[np.argsort(turn, kind="stable")[:images]]


def saliency(work: Work, images: int) -> list[np.ndarray]:
    """s_j = |g_j w_j| / Σ_k |g_k w_k| of every kernel's weights before training.

    g_j w_j is the derivative of the loss in the mask's entry c_j, at c = 1.
    """
    labels = np.asarray(work.arrays["train_y"])
    rows = balanced(labels, images, work.seed)
    start, cpu = time.time(), time.process_time()
    total = [np.zeros(k.shape, np.float32) for k in masks.kernels(work.params)]
    for part in np.array_split(rows, math.ceil(len(rows) / CHUNK)):
        x, y = work.arrays["train_x"][part], work.arrays["train_y"][part]
        grads = _gradient(work.network)(work.params, work.stats, x, y)
        for sum_, g in zip(total, masks.kernels(grads), strict=True):
            sum_ += np.asarray(g) * (len(part) / len(rows))
    work.count(len(rows) / work.batch, time.time() - start, time.process_time() - cpu)
    scores = [
        np.abs(g * np.asarray(w)) for g, w in zip(total, masks.kernels(work.params), strict=True)
    ]
    whole = sum(float(s.sum()) for s in scores)
    return [s / whole for s in scores]


def snip(work: Work, density: float, images: int = 100) -> Found:
    """The connections of highest saliency, of all kernels together, before any training."""
    before = work.cost
    mask = masks.top(work.params, saliency(work, images), density)
    return Found(mask, spent(work, before))


RIVALS = (
    Rival(
        "SNIP",
        snip,
        tuple({"images": n} for n in (100, 128, 256, 512, 1024, 2048, 4096, 8192)),
        "Lee, Ajanthan and Torr 2019, arXiv:1810.02340",
        "Classes are drawn in equal numbers; the network's own initialisation is what is "
        "scored; biases are never pruned.",
        nested=True,
    ),
)
