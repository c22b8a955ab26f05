"""Flax NNX image classifiers, built from explicit widths with He (2015) initialisation.

Inputs are float images [batch, height, width, channels], outputs logits [batch, classes].

Examples:
    >>> import jax.numpy as jnp
    >>> from dessilbi_jax import models
    >>> model = models.build("lenet5", widths=(4, 8, 16))
    >>> model(jnp.zeros((2, 28, 28, 1))).shape
    (2, 10)
"""

from dessilbi_jax.models._build import Network, build, names
from dessilbi_jax.models.lenet import LeNet5, LeNet300
from dessilbi_jax.models.resnet import BasicBlock, ResNet
from dessilbi_jax.models.vgg import VGG

__all__ = ["VGG", "BasicBlock", "LeNet5", "LeNet300", "Network", "ResNet", "build", "names"]
