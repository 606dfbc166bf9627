"""Every setting of a training, in one frozen dataclass that is checked when it is made and saved as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from cdo_ad.errors import ConfigError

__all__ = [
    "ANOMALY_KINDS", "AnomalyKind", "BackgroundRule", "Config", "Optimizer", "Schedule", "training_difference",
]  # fmt: skip

Optimizer = Literal["adamw", "adam"]
Schedule = Literal["exponential", "step", "one-cycle", "constant"]
BackgroundRule = Literal["none", "extremes", "border"]
AnomalyKind = Literal["noise", "perlin", "cut", "intensity", "line", "spot", "smear"]
ANOMALY_KINDS: tuple[AnomalyKind, ...] = get_args(AnomalyKind)
AFTER_TRAINING = (
    "recipe", "density", "fusion_weights", "defect_head_weight", "density_context", "blur_sigma", "score_top",
    "false_alarm_rate",
)  # fmt: skip
"""Settings that the training of the apprentice does not depend on."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a training and of the detector made by it. Start from a recipe, see `cdo_ad.recipes`."""

    recipe: str = "custom"
    """Name of the recipe that these settings come from; says nothing about later changes."""
    backbone: str = "tf_efficientnet_lite0"
    """A timm model name with three feature levels; expert and apprentice share the architecture."""
    weights: str = "auto"
    """The expert's weights: `auto` (the package for tf_efficientnet_lite0, timm's hub otherwise), `hub`, `none`
    (random, for tests) or the path of a .safetensors or .pth state dict."""
    image_height: int = 256
    """Height of the networks' input, pixels; images are resized to it, whatever their shape."""
    image_width: int = 256
    """Width of the networks' input, pixels."""

    normalize_brightness: bool = False
    """Scale each image to one mean brightness before the networks see it, so that dark and bright images of a
    product look alike to them; see `cdo_ad.method.brightness`. Intensities are judged on the image as it is."""

    mom: bool = True
    """Margin optimisation: add_anomaly training images and learn to disagree there."""
    synthesis: str = "noise"
    """Kinds of synthetic anomalies that MOM draws, one an image where there are several: `noise` (the paper's white
    noise), `perlin`, `cut`, `intensity`, `line`, `spot`, `smear`; see `cdo_ad.method.anomalies`. Joined by commas."""
    background: BackgroundRule = "none"
    """Where perturbations may be centred: `none` anywhere; `extremes` not on near-black or near-white (the paper, for
    some categories); `border` not on what looks like the image's edge. Of white noise only."""
    defect_share: float = 0.25
    """Share of each step's images that are labelled defects, where there are any (`--defects`)."""
    oom: bool = True
    """Overlap optimisation: hard pixels weigh more."""
    gamma: float = 2.0
    """Exponent of OOM's weights."""

    epochs: int = 50
    """Passes over the fit images."""
    batch_size: int = 16
    """Images a step, over all devices."""
    optimizer: Optimizer = "adamw"
    """`adamw`, or `adam` (betas 0.5, 0.999; weight decay added to the gradient)."""
    lr: float = 4e-4
    """Learning rate: the first, or for `one-cycle` the largest."""
    weight_decay: float = 1e-4
    """Weight decay of the optimizer."""
    schedule: Schedule = "exponential"
    """`exponential` (times `decay` each epoch), `step` (times `decay` once, at 80 % of the epochs), `one-cycle`
    (warm-up over the first 10 % of the steps, then a cosine to zero) or `constant`."""
    decay: float = 0.95
    """Factor of the `exponential` and `step` schedules."""
    seed: int = 111
    """Seed of everything random: start weights, order, perturbations, split."""

    density: bool = False
    """Add a second branch: how improbable the expert's features are at each position, fitted after the training (see
    `cdo_ad.method.density`)."""
    fusion_weights: str = "auto"
    """With a density: how much of the anomaly map each branch gets. `auto` learns it from good images and synthetic
    anomalies (`cdo_ad.method.fusion`), `equal`, or four numbers that sum to 1, e.g. `0.4,0.2,0.2,0.2`: disagreement,
    density of level 2, of level 3, of intensity."""
    defect_head_weight: float = 0.1
    """With a density, labelled defects and at least 32 good images: how much of the anomaly map the branch that
    recognises those defects gets (see `cdo_ad.method.defect_head`); 0 for no such branch."""
    density_context: int = 8
    """Components of the whole image's appearance that the density is conditional on; 0 for none."""

    blur_sigma: float = 4.0
    """Standard deviation of the Gaussian blur of the anomaly map, pixels of the input."""
    score_top: float = 0.0
    """Image score: 0 for the map's maximum, else the mean of this share of its largest pixels."""

    calibration_share: float = 0.1
    """Share of the good images that is held out for calibration and never trained on."""
    calibration_minimum: int = 20
    """Hold out at least this many where there are twice as many."""
    few: bool = False
    """For one to some twenty good images: train on all of them and altered copies, calibrate by densities that have
    not seen the image that they score, promise no false-alarm rate."""
    keep_copies_together: bool = True
    """Hold out whole groups of near copies, such as one part under two exposures, so that thresholds hold for new
    parts."""
    false_alarm_rate: float = 0.05
    """Share of good images that may be called anomalous, on average."""
    precision: str = "32-true"
    """Lightning Fabric's precision of the training, e.g. `32-true`, `bf16-mixed`."""

    def __post_init__(self) -> None:
        self._check_types()
        _need(self.image_height >= 32 and self.image_width >= 32, "image_height and image_width must be >= 32")
        _need(self.gamma >= 0, f"gamma must be >= 0, got {self.gamma}")
        _need(self.epochs >= 1, f"epochs must be >= 1, got {self.epochs}")
        _need(self.batch_size >= 1, f"batch_size must be >= 1, got {self.batch_size}")
        _need(self.lr > 0, f"lr must be > 0, got {self.lr}")
        _need(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        _need(0 < self.decay <= 1, f"decay must lie in (0, 1], got {self.decay}")
        _need(self.seed >= 0, f"seed must be >= 0, got {self.seed}")
        _need(self.density_context >= 0, f"density_context must be >= 0, got {self.density_context}")
        _need(0 < self.defect_share < 1, f"defect_share must lie in (0, 1), got {self.defect_share}")
        _need(0 <= self.defect_head_weight < 1, f"defect_head_weight must lie in [0, 1), got {self.defect_head_weight}")
        self.shares()
        self.kinds()
        _need(self.blur_sigma >= 0, f"blur_sigma must be >= 0, got {self.blur_sigma}")
        _need(0 <= self.score_top < 1, f"score_top must lie in [0, 1), got {self.score_top}")
        _need(0 < self.calibration_share < 1, f"calibration_share must lie in (0, 1), got {self.calibration_share}")
        _need(self.calibration_minimum >= 1, f"calibration_minimum must be >= 1, got {self.calibration_minimum}")
        _need(0 < self.false_alarm_rate < 1, f"false_alarm_rate must lie in (0, 1), got {self.false_alarm_rate}")

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the networks' input in pixels."""
        return self.image_height, self.image_width

    def shares(self) -> tuple[float, ...] | None:
        """`fusion_weights` as numbers; None where they are learned."""
        if self.fusion_weights == "auto":
            return None
        if self.fusion_weights == "equal":
            return (0.25,) * 4
        try:
            numbers = tuple(float(text) for text in self.fusion_weights.split(","))
        except ValueError:
            numbers = ()
        good = len(numbers) == 4 and min(numbers) >= 0 and abs(sum(numbers) - 1) < 1e-6
        _need(good, f"fusion_weights must be auto, equal or four numbers that sum to 1, got {self.fusion_weights!r}")
        return numbers

    def kinds(self) -> tuple[AnomalyKind, ...]:
        """`synthesis` as names."""
        names = [name.strip() for name in self.synthesis.split(",")]
        kinds = tuple(kind for kind in ANOMALY_KINDS if kind in names)
        known = len(kinds) == len(set(names))
        _need(known, f"synthesis must be names out of {', '.join(ANOMALY_KINDS)}; got {self.synthesis!r}")
        return kinds

    def _check_types(self) -> None:
        for name, hint in _hints().items():
            value = getattr(self, name)
            choices = get_args(hint)
            if choices and value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")
            accepted = (int, float) if hint is float else hint
            if not choices and (not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool)):
                raise ConfigError(f"{name} must be of type {hint.__name__}, got {value!r}")

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed.

        Raises:
            ConfigError: for a name that does not exist or a value out of range.
        """
        unknown = sorted(changes.keys() - _hints().keys())
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}: the settings are {', '.join(_hints())}")
        return dataclasses.replace(self, **changes)

    def with_settings(self, settings: list[str]) -> Config:
        """A copy changed by texts of the form `key=value`, as given to `--set`.

        Raises:
            ConfigError: for a text of another form, an unknown key, or a value of a wrong type or out of range.
        """
        changes = {}
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"--set {text}: write it as key=value")
            changes[key.strip()] = _parse(key.strip(), value.strip())
        return self.replace(**changes)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of `to_json`; settings that are missing take their defaults.

        Raises:
            ConfigError: for an unknown name or a value out of range.
        """
        return cls().replace(**values)


def training_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting, of two `Config.to_json`, that makes another apprentice; None where both train the same one."""
    return next((key for key in now if key not in AFTER_TRAINING and before.get(key) != now[key]), None)


def _hints() -> dict[str, Any]:
    hints = get_type_hints(Config)
    return {field.name: hints[field.name] for field in dataclasses.fields(Config)}


def _parse(key: str, text: str) -> Any:
    hint = _hints().get(key)
    if hint is None or hint is str or get_args(hint):
        return text
    try:
        value = json.loads(text.lower() if hint is bool else text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--set {key}={text}: not a {hint.__name__}") from error
    return float(value) if hint is float and isinstance(value, int) else value


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
