from __future__ import annotations

import json

import pytest

from cdo_ad import recipes
from cdo_ad.config import AFTER_TRAINING, Config, training_difference
from cdo_ad.errors import ConfigError
from cdo_ad.spec import ModelSpec


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
    several = Config().with_settings(["branches=level 3, bank", "fusion_weights=0.25,0.75", "anomalies=noise,line"])
    assert several.branches == ("level 3", "bank") and several.anomalies == ("noise", "line")
    assert several.fusion_weights == (0.25, 0.75)
    assert Config().with_settings(["fusion_weights=equal"]).fusion_weights == "equal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "key=value"),
        ("speed=1", "unknown setting 'speed'"),
        ("density=true", "unknown setting 'density'"),
        ("lr=fast", "setting lr: .* valid number"),
        ("lr=0", "setting lr: .* greater than 0"),
        ("epochs=1.5", "setting epochs: .* valid integer"),
        ("epochs=0", "setting epochs: .* greater than or equal to 1"),
        ("oom=perhaps", "setting oom: .* valid boolean"),
        ("optimizer=sgd", "'adamw' or 'adam'"),
        ("schedule=linear", "'exponential'"),
        ("background=auto", "'border'"),
        ("calibration=few", "'cross' or 'held-out'"),
        ("decay=1.5", "less than or equal to 1"),
        ("seed=-1", "greater than or equal to 0"),
        ("score_top=1", "less than 1"),
        ("lr=nan", "setting lr: "),
        ("held_out_share=1", "less than 1"),
        ("false_alarm_rate=0", "greater than 0"),
        ("defect_head_weight=1", "less than 1"),
        ("context_share=1", "less than 1"),
        ("budget=0.5", "greater than or equal to 1"),
        ("image_width=16", "must be 32 or more, or both 0"),
        ("image_width=0", "must be 32 or more, or both 0"),
        ("branches=level 4", "'disagreement', 'level 2'"),
        ("branches=bank,bank", "branches must differ"),
        ("calibration=cross", "scores of good images that it learned from: set held-out"),
        ("fusion_weights=0.5,0.5", "1 numbers that sum to 1"),
        ("fusion_weights=2", "sum to 1"),
        ("anomalies=noise,dirt", "'noise', 'perlin'"),
    ],
)
def test_bad_settings_are_named(text, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Config().with_settings([text])
    assert "\n" not in str(caught.value)


def test_both_sides_zero_ask_for_a_size_from_the_images() -> None:
    assert Config(image_height=0, image_width=0).image_size == (0, 0)
    assert recipes.lite0().image_size == (0, 0) and recipes.paper().image_size == (256, 256)


@pytest.mark.parametrize("name", ["lite2", "wide_resnet50", "convnext", "dinov2", "dinov3"])
def test_a_stronger_expert_is_the_default_otherwise(name: str) -> None:
    config = recipes.get(name)
    expected = recipes.lite0().replace(recipe=name, backbone=config.backbone)
    if name == "dinov2":
        assert config.image_size == (252, 252)
        expected = expected.replace(image_height=252, image_width=252)
    assert config == expected and config.backbone != recipes.lite0().backbone


def test_the_set_of_settings_is_frozen() -> None:
    """A setting that comes or goes changes the files of runs: change this list on purpose only."""
    assert " ".join(sorted(Config().to_json())) == (
        "anomalies backbone background baseline_share batch_size blur_sigma branches budget calibration "
        "context_share decay defect_head_weight defect_share epochs false_alarm_rate fusion_weights gamma "
        "head_examples held_out_share image_height image_width keep_groups_together lr mom normalize_brightness "
        "oom optimizer precision recipe schedule score_top seed tile weight_decay weights"
    )


def test_settings_after_the_training_are_settings_and_make_no_other_apprentice() -> None:
    assert set(Config.model_fields) >= AFTER_TRAINING
    before = Config().to_json()
    later = Config(blur_sigma=2.0, fusion_weights="equal", false_alarm_rate=0.1, context_share=0.1).to_json()
    assert training_difference(before, later) is None
    assert training_difference(before, Config(gamma=1.0).to_json()) == "gamma"
    assert training_difference({}, before) is not None


def test_the_default_says_all_that_a_model_is_made_of() -> None:
    spec = ModelSpec.from_config(recipes.lite0().replace(image_height=256, image_width=320))
    assert spec.branches == ("level 3", "level 2", "bank", "intensity") and spec.image_size == (256, 320)
    assert spec.normalize_brightness and spec.categories[0].standardized
    paper = ModelSpec.from_config(recipes.paper("lite0"))
    assert paper.branches == ("disagreement",) and not paper.normalize_brightness
    assert not paper.categories[0].standardized
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
