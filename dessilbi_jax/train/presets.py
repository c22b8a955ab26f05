"""The runs that have a name."""

import dataclasses
from typing import Any

from dessilbi_jax.text import near_miss
from dessilbi_jax.train.config import TrainConfig

SETTLE = (0.1, 0.75)  # where a budget is given and the preset does not settle
GROW_EVERY = 10  # epochs between two looks, as in the authors' toolbox


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A named run: what it shows, the command, what to expect, and its configuration.

    Attributes:
        name: the word after `dessilbi train`.
        about: the network, the data and the optimizer, in a sentence.
        command: how to run it.
        expect: time on two CPU cores and test accuracies, as measured; empty until measured.
        input_shape: (height, width, channels) of the data set's images, or (context,).
        config: the configuration.
        classes: of the data set; the vocabulary of a text.
        mesh: the devices it runs on by default, as `make_mesh` has it.
    """

    name: str
    about: str
    command: str
    expect: str
    input_shape: tuple[int, ...]
    config: TrainConfig
    classes: int = 10
    mesh: str = "auto"

    def __str__(self) -> str:
        lines = [self.name, f"  {self.about}", f"  {self.command}"]
        return "\n".join([*lines, f"  {self.expect}"] if self.expect else lines)


_DEMO = Preset(
    name="demo",
    about="LeNet-300-100 on the handwritten digits that come with the package; hidden units leave"
    " inside the run, which ends with a small network, cut out; SGD with momentum.",
    command="dessilbi train demo",
    expect="10 to 20 s on two cores; test accuracy 96.9 % (seed 0), 96.7 to 97.2 % (seeds 11 to 13)"
    " with 10 to 12 % of the parameters, in one run.",
    input_shape=(8, 8, 1),
    config=TrainConfig(
        network="lenet300",
        dataset="digits",
        epochs=30,
        batch_size=64,
        learning_rate=0.1,
        nu=100.0,
        density=0.15,
        at=0.6,
        settle=(0.1, 0.6),
        structure="channels",
        cut=False,  # another compilation would take longer than what it saves
    ),
)

_LENET300 = Preset(
    name="lenet300-mnist",
    about="LeNet-300-100 (the paper's LeNet-3) on MNIST, ends with 2 % of its weights, SGD with"
    " momentum, constant rate for half of the run, then a cosine; other sizes by --density.",
    command="dessilbi train lenet300-mnist --data-dir DIR",
    expect="20 to 30 s of training on two cores; test accuracy 98.07 % with exactly 2 % of the"
    " weights (seed 0), 98.00 ± 0.13 % (seeds 0 to 2).",
    input_shape=(28, 28, 1),
    config=TrainConfig(
        network="lenet300",
        dataset="mnist",
        epochs=10,
        learning_rate=0.05,
        schedule="half",
        nu=50.0,
        density=0.02,
        at=0.75,
        settle=(0.1, 0.75),
        structure="weights",
        records_per_epoch=4,
    ),
)

_LENET5 = Preset(
    name="lenet5-mnist",
    about="LeNet-5 on MNIST: convolutions by filter, dense layers by weight, to 5 % of the"
    " weights, SGD with momentum.",
    command="dessilbi train lenet5-mnist --data-dir DIR",
    expect="",
    input_shape=(28, 28, 1),
    config=TrainConfig(
        network="lenet5",
        dataset="mnist",
        epochs=10,
        learning_rate=0.01,
        schedule="cosine",
        nu=20.0,
        records_per_epoch=4,
    ),
)

_VGG = Preset(
    name="vgg-small-cifar10",
    about="A small VGG with batch normalisation on CIFAR-10, to half of the weights by filters,"
    " SGD with momentum, cosine schedule, crops and flips.",
    command="dessilbi train vgg-small-cifar10 --data-dir DIR",
    expect="",
    input_shape=(32, 32, 3),
    config=TrainConfig(
        network="vgg-small",
        dataset="cifar10",
        epochs=20,
        learning_rate=0.05,
        schedule="cosine",
        weight_decay=5e-4,
        density=0.5,
        augment=True,
        records_per_epoch=2,
        nu=100.0,
    ),
)

_RESNET = Preset(
    name="resnet-small-cifar10",
    about="A small residual network on CIFAR-10, to half of the weights by filters, SGD with"
    " momentum, cosine schedule, crops and flips.",
    command="dessilbi train resnet-small-cifar10 --data-dir DIR",
    expect="",
    input_shape=(32, 32, 3),
    config=TrainConfig(
        network="resnet-small",
        dataset="cifar10",
        epochs=20,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=5e-4,
        density=0.5,
        augment=True,
        records_per_epoch=2,
        nu=100.0,
    ),
)

_RESNET20 = Preset(
    name="resnet20-cifar10",
    about="ResNet-20 on CIFAR-10, its channels selected to half of the weights, SGD with momentum,"
    " the rate dropped at half and three quarters, crops and flips.",
    command="dessilbi train resnet20-cifar10 --data-dir DIR",
    expect="",
    input_shape=(32, 32, 3),
    config=TrainConfig(
        network="resnet20",
        dataset="cifar10",
        epochs=160,
        learning_rate=0.1,
        schedule="step",
        weight_decay=1e-4,
        density=0.5,
        structure="channels",
        augment=True,
        keep_every=10,
        nu=100.0,
    ),
)

_VGG16 = Preset(
    name="vgg16-cifar10",
    about="VGG-16 with batch normalisation on CIFAR-10, its channels selected to a fifth of the"
    " weights, SGD with momentum, cosine schedule, crops and flips.",
    command="dessilbi train vgg16-cifar10 --data-dir DIR",
    expect="",
    input_shape=(32, 32, 3),
    config=TrainConfig(
        network="vgg16",
        dataset="cifar10",
        epochs=160,
        learning_rate=0.05,
        schedule="cosine",
        weight_decay=5e-4,
        density=0.2,
        structure="channels",
        augment=True,
        keep_every=20,
        nu=100.0,
    ),
)

_VIT = Preset(
    name="vit-tiny-cifar10",
    about="ViT-Tiny with patches of 4x4 on CIFAR-10, its heads and hidden units selected to half,"
    " AdamW with warm-up and cosine schedule, crops and flips.",
    command="dessilbi train vit-tiny-cifar10 --data-dir DIR",
    expect="",
    input_shape=(32, 32, 3),
    config=TrainConfig(
        network="vit-tiny",
        dataset="cifar10",
        epochs=200,
        batch_size=256,
        learning_rate=0.001,
        schedule="cosine",
        warmup=0.05,
        optimizer="adam",
        weight_decay=0.05,
        clip=1.0,
        density=0.5,
        structure="channels",
        sqrt_size=True,
        augment=True,
        keep_every=20,
        nu=100.0,
    ),
)

_GPT = Preset(
    name="gpt-mini",
    about="A small GPT on the bytes of a text, its heads and hidden units selected to half, AdamW"
    " with warm-up and cosine schedule.",
    command="dessilbi train gpt-mini --text FILE",
    expect="",
    input_shape=(128,),
    classes=256,
    config=TrainConfig(
        network="gpt-mini",
        dataset="text",
        epochs=10,
        batch_size=32,
        learning_rate=0.001,
        schedule="cosine",
        warmup=0.05,
        optimizer="adam",
        weight_decay=0.1,
        clip=1.0,
        density=0.5,
        structure="channels",
        sqrt_size=True,
        holdout=0.05,
        nu=100.0,
    ),
)

_IMAGENET = Preset(
    name="resnet18-imagenet",
    about="ResNet-18 on ImageNet, streamed at 224x224, its channels selected to half of the"
    " weights, SGD with momentum, warm-up and cosine schedule.",
    command="dessilbi train resnet18-imagenet --data-dir DIR",
    expect="",
    input_shape=(224, 224, 3),
    classes=1000,
    config=TrainConfig(
        network="resnet18",
        dataset="imagenet2012",
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        schedule="cosine",
        warmup=0.05,
        weight_decay=1e-4,
        density=0.5,
        structure="channels",
        holdout=0.01,
        keep_every=10,
        nu=100.0,
    ),
)

PRESETS = {
    p.name: p
    for p in (
        _DEMO, _LENET300, _LENET5, _VGG, _RESNET, _RESNET20, _VGG16, _VIT, _GPT, _IMAGENET,
    )
}  # fmt: skip


def get_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Args:
        name: one of `PRESETS`.

    Raises:
        ValueError: there is none of that name; the message lists them and suggests the nearest.

    Example:
        >>> get_preset("demo").config.dataset
        'digits'
        >>> get_preset("lenet30-mnist")
        Traceback (most recent call last):
        ...
        ValueError: no preset is named 'lenet30-mnist'; did you mean lenet300-mnist? There are: ...
    """
    if name not in PRESETS:
        hint = near_miss(name, PRESETS) or "."
        raise ValueError(f"no preset is named {name!r}{hint} There are: {', '.join(PRESETS)}")
    return PRESETS[name]


def with_options(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Returns a configuration with some fields replaced, and those that must follow them.

    A numeric `lam` takes away the density that "auto" would aim at, and settling to it. A budget
    that a run ends with makes it settle; a share of the weights is a density; a density, or no
    settling, takes away a budget. Adam takes away what is of sgd only (variant, nesterov), and
    without a learning rate of its own gets 0.001.
    A run that grows begins at 16 channels a layer, selects whole filters and units (channels, where
    it settles behind, and then behind its growth), and stays dense unless a budget is given.

    Raises:
        ValueError: as `TrainConfig`.
        TypeError: as `TrainConfig`.

    Example:
        >>> config = with_options(get_preset("demo").config, {"lam": 0.01})
        >>> config.lam, config.density
        (0.01, None)
    """
    follow: dict[str, Any] = {}
    name, amount = given.get("budget") or ("", 0)
    if name == "weights" and isinstance(amount, float):
        given = {k: v for k, v in given.items() if k != "budget"} | {"density": amount}
    if given.get("budget") and "density" in given:
        raise ValueError(
            f"{name} and density: a run ends with one budget; λ aims at the preset's density"
        )
    if given.get("budget") or name:
        follow |= {"settle": config.settle or SETTLE}
    if "density" in given or ("settle" in given and given["settle"] is None):
        follow |= {"budget": None}
    if given.get("grow", config.grow):
        until = given.get("grow_until", config.grow_until)
        ends = given.get("budget") or given.get("settle") or "density" in given
        settle = None
        if ends:
            settle = given.get("settle") or (until, until + 0.5 * (1 - until))
        structure = "neurons"
        if ends or (given.get("structure") or config.structure) == "channels":
            structure = "channels"
        follow |= {"widths": None, "structure": structure, "settle": settle}
        if not ends:
            follow |= {"budget": None}
    if given.get("lam", "auto") != "auto":
        follow |= {"density": None, "settle": None}
    if given.get("optimizer") == "adam":
        follow |= {"variant": "toolbox", "nesterov": False, "learning_rate": 0.001}
    return dataclasses.replace(config, **{**follow, **given})
