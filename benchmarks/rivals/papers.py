"""What the papers' Fig. 5 was run with, for the tables that repeat or vary it."""

import dataclasses
import functools

import optax

import dessilbi_jax as dl
from benchmarks.harness.work import Setting


@dataclasses.dataclass(frozen=True)
class Published:
    """One run of the figure, at κ = 1.

    Attributes:
        name: in words.
        setting: network, data and schedule; the rate is κα.
        structure: of Γ, by name: "filters" is the papers' group lasso, "weights" their lasso.
        lam, nu: λ and ν.
    """

    name: str
    setting: Setting
    structure: str
    lam: float
    nu: float = 100.0


def _setting(network: str) -> Setting:
    return Setting(network, "cifar10", 160, 0.1, schedule="steps", augment=True)


# The papers' ResNet-50 is the one for ImageNet, on images of 32x32.
FIGURE_5 = (
    Published("VGG-16, group", _setting("vgg16"), "filters", 0.1),
    Published("ResNet-56, group", _setting("resnet56"), "filters", 0.05),
    Published("VGG-16, lasso", _setting("vgg16"), "weights", 0.05),
    Published("ResNet-50, lasso", _setting("resnet50"), "weights", 0.03),
)


@functools.lru_cache(8)
def optimizer(
    rate: optax.Schedule, momentum: float, structure: str, kappa: float, nu: float, lam: float
) -> optax.GradientTransformation:
    """DessiLBI as written in Eq. 14 to 16, with Nesterov momentum and no weight decay."""
    return dl.dessilbi(
        rate, kappa, nu, lam=lam, structure=getattr(dl, structure), momentum=momentum,
        nesterov=True, variant="paper",
    )  # fmt: skip
