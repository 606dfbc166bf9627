"""Every setting of a training, checked when it is made and saved as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from cdo_ad.errors import ConfigError
from cdo_ad.files import Document, problem

__all__ = [
    "ANOMALY_KINDS",
    "DEPTH",
    "AnomalyKind",
    "BackgroundRule",
    "BranchName",
    "Branches",
    "Config",
    "Optimizer",
    "Schedule",
    "least_images",
    "look_at_depth",
    "training_difference",
]

Optimizer = Literal["adamw", "adam"]
Schedule = Literal["exponential", "step", "one-cycle", "constant"]
BackgroundRule = Literal["none", "extremes", "border"]
BranchName = Literal["disagreement", "level 2", "level 3", "bank", "intensity", "depth", "depth bank"]
DEPTH: tuple[BranchName, ...] = ("depth", "depth bank")
"""The branches that need a point cloud of each image."""
AnomalyKind = Literal["noise", "perlin", "cut", "intensity", "line", "spot", "smear"]
ANOMALY_KINDS: tuple[AnomalyKind, ...] = get_args(AnomalyKind)


def _listed(value: object) -> object:
    """`a,b,c` of the command line as a tuple; a word that stands for itself stays."""
    if isinstance(value, str) and value not in ("learned", "equal"):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


Unit = Annotated[float, Field(gt=0, lt=1)]
Weights = Annotated[Literal["learned", "equal"] | tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(_listed)]
Branches = Annotated[tuple[BranchName, ...], Field(min_length=1), BeforeValidator(_listed)]
Kinds = Annotated[tuple[AnomalyKind, ...], Field(min_length=1), BeforeValidator(_listed)]


def look_at_depth(branches: Iterable[BranchName]) -> bool:
    """Whether any of the branches needs a point cloud of each image."""
    return not set(DEPTH).isdisjoint(branches)


class Config(Document):
    """The settings of a training and of the detector made by it. Start from a recipe, see `cdo_ad.recipes`.

    Raises:
        ConfigError: an unknown name, a value of a wrong type or out of range.
    """

    recipe: str = "custom"
    """Name of the recipe that these settings come from; says nothing about later changes."""
    backbone: str = "tf_efficientnet_lite0"
    """A timm model name with three levels of features; expert and apprentice share the architecture."""
    weights: str = "auto"
    """The expert's weights: `auto` (a package for the Lite models, timm's hub otherwise), `hub`, `none` (random, for
    tests) or the path of a .safetensors or .pth state dict."""
    image_height: int = Field(default=256, ge=0)
    """Height of the networks' input, pixels; images are resized to it, whatever their shape. 0, with `image_width` 0:
    chosen from the good images, see `cdo_ad.data.input_size`."""
    image_width: int = Field(default=256, ge=0)
    """Width of the networks' input, pixels."""
    budget: float = Field(default=2.25, ge=1)
    """Where the input size is chosen: the largest cost of an image, as a multiple of that at 256 x 256."""
    tile: int = Field(default=0, ge=0)
    """Side of the tiles that large images are judged in, pixels of the image; 0 for whole images, see
    `cdo_ad.tiles`."""
    normalize_brightness: bool = False
    """Scale each image to one mean brightness before the networks see it, so that a dark and a bright image of a part
    look alike to them. Intensities are judged on the image as it is."""

    mom: bool = True
    """Margin optimisation: draw synthetic anomalies into training images and learn to disagree there."""
    anomalies: Kinds = ("noise",)
    """Kinds of synthetic anomalies that MOM draws, one kind for each image: `noise` (the paper's white noise),
    `perlin`, `cut`, `intensity`, `line`, `spot`, `smear`; see `cdo_ad.method.anomalies`."""
    background: BackgroundRule = "none"
    """Where white noise may be centred: `none` anywhere; `extremes` not on near-black or near-white (the paper, for
    some categories); `border` not on what looks like the image's edge."""
    defect_share: Unit = 0.25
    """Share of each step's images that are labelled defects, where there are any (`--defects`)."""
    oom: bool = True
    """Overlap optimisation: hard pixels weigh more."""
    gamma: float = Field(default=2.0, ge=0)
    """Exponent of OOM's weights."""

    epochs: int = Field(default=50, ge=1)
    """Passes over the good images."""
    batch_size: int = Field(default=16, ge=1)
    """Images in each step, over all devices."""
    optimizer: Optimizer = "adamw"
    """`adamw`, or `adam` (betas 0.5, 0.999; weight decay added to the gradient)."""
    lr: float = Field(default=4e-4, gt=0)
    """Learning rate: the first, or for `one-cycle` the largest."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of the optimizer."""
    schedule: Schedule = "exponential"
    """`exponential` (times `decay` after each epoch), `step` (times `decay` once, at 80 % of the epochs), `one-cycle`
    (warm-up over the first 10 % of the steps, then a cosine to zero) or `constant`."""
    decay: float = Field(default=0.95, gt=0, le=1)
    """Factor of the `exponential` and `step` schedules."""
    seed: int = Field(default=111, ge=0)
    """Seed of everything random: start weights, order, anomalies, folds."""
    precision: str = "32-true"
    """Lightning Fabric's precision of the training, e.g. `32-true`, `bf16-mixed`."""

    branches: Branches = ("disagreement",)
    """What the anomaly map is made of: `disagreement` (the paper), `level 2`, `level 3`, `bank`, `intensity`, `depth`,
    `depth bank`; see `cdo_ad.method.branches`. Without `disagreement` there is no apprentice to train."""
    context_share: float = Field(default=1 / 3, ge=0, lt=1)
    """Components of the whole image's appearance that the Gaussians are conditional on, as a share of the number of
    good images; 0 for none."""
    fusion_weights: Weights = "learned"
    """The weight of each branch: `learned` from good images and synthetic anomalies (`cdo_ad.method.fusion`),
    `equal`, or a number for each branch, which sum to 1."""
    defect_head_weight: float = Field(default=0.1, ge=0, lt=1)
    """With `level 2` or `level 3` and at least 64 good images, or 32 and labelled defects: the weight of the branch
    that knows these defects and synthetic anomalies (see `cdo_ad.method.defect_head`); 0 for no such branch."""
    head_examples: int = Field(default=0, ge=0)
    """Synthetic anomalies of each kind that this branch learns from; with 0 it learns from labelled defects alone."""
    baseline_share: float = Field(default=0.0, ge=0, le=1)
    """Share of what an image's map owes to the image as a whole that is taken off (`cdo_ad.method.fusion`), where
    good images show each part twice or more on average and thresholds are for new parts; 0 for nothing."""
    blur_sigma: float = Field(default=4.0, ge=0)
    """Standard deviation of the Gaussian blur of the anomaly map, pixels of the input."""
    score_top: float = Field(default=0.0, ge=0, lt=1)
    """Image score: 0 for the map's maximum, else the mean of this share of its largest pixels."""

    false_alarm_rate: Unit = 0.05
    """Share of good images that may be called anomalous, on average."""
    calibration: Literal["cross", "held-out"] = "held-out"
    """Where the thresholds come from: `cross`, every good image scored by a detector that has not seen it; or
    `held-out`, a part of the good images that is never trained on. The disagreement alone knows `held-out` only: its
    apprentice cannot be trained for each fold."""
    held_out_share: Unit = 0.1
    """Share of the good images that `held-out` sets aside, at least 20 where there are twice as many."""
    keep_groups_together: bool = True
    """Near copies, such as one part under two exposures, lie in one fold, so that thresholds hold for new parts."""

    if not TYPE_CHECKING:  # the type checker sees the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(_explained(error)) from error

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        weights, count = self.fusion_weights, len(self.branches)
        if isinstance(weights, tuple) and (len(weights) != count or abs(sum(weights) - 1) > 1e-6):
            raise ValueError(f"fusion_weights must be learned, equal or {count} numbers that sum to 1, got {weights}")
        sides = (self.image_height, self.image_width)
        if sides != (0, 0) and min(sides) < 32:
            raise ValueError(f"image_height and image_width must be 32 or more, or both 0, got {sides}")
        if 0 < self.tile < 32:
            raise ValueError(f"tile must be 32 pixels or more, or 0 for whole images, got {self.tile}")
        if len(set(self.branches)) != count:
            raise ValueError(f"branches must differ, got {', '.join(self.branches)}")
        if self.calibration == "cross" and self.branches == ("disagreement",):
            raise ValueError("the disagreement alone has scores of good images that it learned from: set held-out")
        if self.tile and self.depth:
            raise ValueError("tiles show images alone: set tile=0, or leave depth out of the branches")
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the networks' input in pixels."""
        return self.image_height, self.image_width

    @property
    def depth(self) -> bool:
        """True where each image comes with a point cloud."""
        return look_at_depth(self.branches)

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed; raises ConfigError."""
        return Config(**{**self.model_dump(), **changes})

    def with_settings(self, settings: Sequence[str]) -> Config:
        """A copy changed by texts of the form `key=value`, as given to `--set`.

        Raises:
            ConfigError: a text of another form, an unknown key, or a value of a wrong type or out of range.
        """
        changes = {}
        for text in settings:
            key, equals, value = (part.strip() for part in text.partition("="))
            if not equals:
                raise ConfigError(f"--set {text}: write it as key=value")
            changes[key] = value
        return self.replace(**changes)


def least_images(config: Config) -> int:
    """Good images that a run needs: each that calibrates is judged by what was learned from two others or more."""
    return 3 if config.calibration == "cross" else 2


AFTER_TRAINING = frozenset(
    [
        "recipe",
        "context_share",
        "fusion_weights",
        "defect_head_weight",
        "head_examples",
        "baseline_share",
        "blur_sigma",
        "score_top",
        "false_alarm_rate",
    ]
)
"""Settings that the training of the apprentice does not depend on."""


def training_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting, of two `Config.to_json`, that makes another apprentice; None where both train the same one."""
    return next((key for key in now if key not in AFTER_TRAINING and before.get(key) != now[key]), None)


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        return f"unknown setting {first['loc'][0]!r}: the settings are {', '.join(Config.model_fields)}"
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"setting {problem(error)}{got}"
