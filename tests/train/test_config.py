import dataclasses
import json

import numpy as np
import pytest

from dessilbi_jax.train.config import TrainConfig, differences
from dessilbi_jax.train.presets import PRESETS, get_preset, with_options

GOOD = TrainConfig(network="lenet300", dataset="digits", epochs=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, v) for name in ("learning_rate", "nu", "kappa") for v in (0.0, -1.0)],
        *[
            (name, float(v))
            for name in ("learning_rate", "nu", "kappa", "density", "momentum", "at", "holdout")
            for v in ("nan", "inf")
        ],
        ("density", 0.0),
        ("density", 1.5),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("at", 1.1),
        ("holdout", 0.6),
        ("drop_factor", 1.0),
        ("drop_at", (0.5, 1.0)),
        ("epochs", 0),
        ("batch_size", -3),
        ("seed", -1),
        ("widths", (0,)),
        ("records_per_epoch", 0),
        ("lam", "automatic"),
        ("density", None),
        ("variant", "papr"),
        ("structure", "filter"),
        ("optimizer", "rmsprop"),
        ("schedule", "linear"),
        ("kappa", 1e-40),
        ("nu", 1e300),
        ("seed", 2**63),
        ("epochs", 10**10),
        ("records_per_epoch", 10**20),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_given(field, value):
    with pytest.raises(ValueError, match=rf"{field}\b.*got") as caught:
        dataclasses.replace(GOOD, **{field: value})
    shown = value[-1] if isinstance(value, tuple) else value
    assert repr(shown) in str(caught.value)


@pytest.mark.parametrize("lam", [0.0, -0.1, float("nan")])
def test_a_numeric_lam_is_checked_too(lam):
    with pytest.raises(ValueError, match="lam must be a finite number above 0, got"):
        dataclasses.replace(GOOD, lam=lam, density=None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 2.5), ("nu", "100"), ("lean", 1), ("epochs", True)],
)
def test_a_value_of_the_wrong_type_is_a_type_error(field, value):
    with pytest.raises(TypeError, match=field):
        dataclasses.replace(GOOD, **{field: value})


def test_near_misses_are_suggested():
    with pytest.raises(ValueError, match="did you mean filters"):
        dataclasses.replace(GOOD, structure="filter")
    with pytest.raises(ValueError, match="did you mean lenet300-mnist"):
        get_preset("lenet-300-mnist")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": 0.1}, "give one of the two"),
        ({"optimizer": "adam", "variant": "paper"}, "leave variant out"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov"),
    ],
)
def test_values_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GOOD, **changes)


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.nu = 3.0


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_survive_json_and_say_how_to_run_them(preset):
    assert TrainConfig.from_json(preset.config.to_json()) == preset.config
    assert preset.command.startswith(f"dessilbi train {preset.name}")
    assert preset.about in str(preset)


def test_an_unknown_field_in_json_is_an_error():
    with pytest.raises(ValueError, match="unknown fields of a configuration: mu"):
        TrainConfig.from_json({**GOOD.to_json(), "mu": 1})


def test_differences_name_the_fields_with_both_values():
    other = dataclasses.replace(GOOD, nu=50.0, seed=3)
    assert differences(GOOD, other) == ["nu: 20.0, now 50.0", "seed: 0, now 3"]
    assert differences(GOOD, GOOD) == []


def test_options_take_along_what_must_follow():
    vgg = get_preset("vgg-small-cifar10").config
    adam = with_options(vgg, {"optimizer": "adam"})
    assert (adam.variant, adam.learning_rate) == ("toolbox", 0.001)
    assert with_options(vgg, {"optimizer": "adam", "learning_rate": 0.01}).learning_rate == 0.01
    assert with_options(vgg, {"lam": 0.5}).density is None
    assert with_options(vgg, {"lam": "auto"}).density == vgg.density
    with pytest.raises(ValueError, match="give one of the two"):
        with_options(vgg, {"lam": 0.5, "density": 0.1})


def test_numbers_of_numpy_are_numbers():
    given = dataclasses.replace(
        GOOD, epochs=np.int64(3), nu=np.float32(0.5), lean=np.bool_(True), widths=[np.int32(4)],
        drop_at=np.array(0.5)[None].tolist(), seed=np.uint8(7), settle=(np.float64(0.1), 0.5),
    )  # fmt: skip
    plain = dataclasses.replace(
        GOOD, epochs=3, nu=0.5, lean=True, widths=(4,), drop_at=(0.5,), seed=7, settle=(0.1, 0.5)
    )
    assert given == plain
    assert json.dumps(given.to_json()) == json.dumps(plain.to_json())
    with pytest.raises(TypeError, match="epochs"):
        dataclasses.replace(GOOD, epochs=np.float32(3))
