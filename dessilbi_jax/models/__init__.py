"""Flax NNX networks by name, built from explicit widths.

`build` makes a network; `names` lists what it knows, `entry` says what a name stands for, and
`widths` reads from a network, also from a slimmed one, the widths that make it anew. Inputs are
float images [batch, height, width, channels] or int32 tokens [batch, context], outputs logits.

Examples:
    >>> import jax.numpy as jnp
    >>> from dessilbi_jax import models
    >>> model = models.build("lenet5", widths=(4, 8, 16))
    >>> model(jnp.zeros((2, 28, 28, 1))).shape
    (2, 10)
"""

from dessilbi_jax.models._blocks import BasicBlock, Bottleneck
from dessilbi_jax.models._build import build, entry, example_input, names, widths
from dessilbi_jax.models._entry import Entry, Network
from dessilbi_jax.models.alexnet import AlexNet
from dessilbi_jax.models.conv_n import ConvN
from dessilbi_jax.models.densenet import DenseNet
from dessilbi_jax.models.gpt import GPT
from dessilbi_jax.models.lenet import LeNet5, LeNet300
from dessilbi_jax.models.mobilenet import MobileNetV2
from dessilbi_jax.models.pretrained import load_torch
from dessilbi_jax.models.resnet import ResNet
from dessilbi_jax.models.vgg import VGG
from dessilbi_jax.models.vit import ViT
from dessilbi_jax.models.wide_resnet import WideResNet

__all__ = [
    "GPT",
    "VGG",
    "AlexNet",
    "BasicBlock",
    "Bottleneck",
    "ConvN",
    "DenseNet",
    "Entry",
    "LeNet5",
    "LeNet300",
    "MobileNetV2",
    "Network",
    "ResNet",
    "ViT",
    "WideResNet",
    "build",
    "entry",
    "example_input",
    "load_torch",
    "names",
    "widths",
]
