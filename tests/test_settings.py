from __future__ import annotations

import json

import pytest

from cdo_ad import recipes
from cdo_ad.config import Config
from cdo_ad.errors import ConfigError


def test_recipes_are_the_published_ones() -> None:
    paper = recipes.get("paper_hrnet32")
    assert (paper.backbone, paper.optimizer, paper.lr, paper.weight_decay) == ("hrnet_w32", "adamw", 4e-4, 1e-4)
    assert (paper.schedule, paper.decay, paper.batch_size, paper.epochs) == ("exponential", 0.95, 16, 50)
    assert (paper.gamma, paper.seed, paper.image_size, paper.blur_sigma) == (2.0, 111, (256, 256), 4.0)
    later = recipes.get("cdo2025_hrnet32")
    assert (later.optimizer, later.lr, later.batch_size, later.weight_decay) == ("adam", 1e-3, 32, 0.05)
    assert (later.schedule, later.decay, later.epochs, later.score_top) == ("step", 0.1, 100, 0.01)
    assert recipes.get("lite0").backbone == "tf_efficientnet_lite0"
    assert {recipes.get(name).recipe for name in recipes.RECIPES} == set(recipes.RECIPES)


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(ConfigError, match="lite0"):
        recipes.get("lite1")
    with pytest.raises(ConfigError, match="hrnet32"):
        recipes.paper("vgg")


def test_json_and_back() -> None:
    config = recipes.cdo2025("resnet18").replace(oom=False)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_as_text() -> None:
    config = Config().with_settings(["lr=1", "oom=False", "gamma = 3", "backbone=resnet18", "epochs=7"])
    assert (config.lr, config.oom, config.gamma, config.backbone, config.epochs) == (1.0, False, 3.0, "resnet18", 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "key=value"),
        ("speed=1", "unknown setting 'speed'"),
        ("lr=fast", "not a float"),
        ("lr=0", "lr must be > 0"),
        ("lr=-1", "lr must be > 0"),
        ("epochs=1.5", "of type int"),
        ("epochs=true", "of type int"),
        ("epochs=0", ">= 1"),
        ("batch_size=0", ">= 1"),
        ("oom=1", "of type bool"),
        ("optimizer=sgd", "adamw, adam"),
        ("schedule=linear", "exponential"),
        ("background=auto", "border"),
        ("gamma=-1", ">= 0"),
        ("weight_decay=-1", ">= 0"),
        ("decay=0", r"\(0, 1\]"),
        ("decay=1.5", r"\(0, 1\]"),
        ("seed=-1", ">= 0"),
        ("blur_sigma=-1", ">= 0"),
        ("score_top=1", r"\[0, 1\)"),
        ("calibration_share=1", r"\(0, 1\)"),
        ("calibration_minimum=0", ">= 1"),
        ("false_alarm_rate=0", r"\(0, 1\)"),
        ("image_width=16", ">= 32"),
    ],
)
def test_bad_settings_are_named(text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().with_settings([text])


def test_the_set_of_settings_is_frozen() -> None:
    # a bundle of an older version must stay readable: add settings with a default, never rename one
    assert " ".join(sorted(Config().to_json())) == (
        "backbone background batch_size blur_sigma calibration_minimum calibration_share decay defect_share density "
        "density_context epochs normalize_brightness false_alarm_rate few gamma image_height image_width "
        "keep_copies_together lr mom oom optimizer precision recipe defect_head_weight "
        "schedule score_top seed synthesis fusion_weights weight_decay weights"
    )
