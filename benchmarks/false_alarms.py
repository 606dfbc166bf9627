"""Does the rate hold? Thresholds from random draws of good images, and the false alarms of the other good images.

    python benchmarks/false_alarms.py ../shared/data/magnetic_tile_parts --draws 200 --images 60

Each draw takes whole groups of near copies until there are as many images as asked for, fits the branches on them, sets
thresholds from their left-out scores, and judges all other good images, one vote for each group. Printed for each rate:
the mean share of false alarms over the draws, its standard error, and whether the promise lies within two of them.
The default recipe at 256 x 256; weights are equal, as learning them for each draw would take hours. What the expert
sees of an image is computed once for all draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cdo_ad import recipes
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.conformal import GoodScores, units_needed
from cdo_ad.data import read_dataset
from cdo_ad.data.split import group_images
from cdo_ad.data.store import load_image
from cdo_ad.method.fit import FitSettings, fit_branches
from cdo_ad.method.gaussian import components_for
from cdo_ad.method.model import AnomalyModel
from cdo_ad.spec import CategorySpec, ModelSpec

RATES = (0.01, 0.02, 0.05, 0.1)


class Remembering(nn.Module):
    """An expert that sees each image once."""

    def __init__(self, expert: nn.Module) -> None:
        super().__init__()
        self.expert, self.mean, self.std = expert, expert.mean, expert.std
        self.seen: dict[bytes, list[Tensor]] = {}

    def forward(self, images: Tensor) -> list[Tensor]:
        """The expert's maps."""
        found = []
        for image in images:
            key = image.numpy().tobytes()[::61]  # no two images share every 61st byte
            if key not in self.seen:
                self.seen[key] = [level[0] for level in self.expert(image[None])]
            found.append(self.seen[key])
        return [torch.stack(level) for level in zip(*found, strict=True)]


def main() -> None:
    """Parse, draw, print."""
    parser = argparse.ArgumentParser(description="False alarms at the promised rate over random draws.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--images", type=int, default=60, help="good images of a draw")
    parser.add_argument("--judged", type=int, default=100, help="most other good images that a draw judges")
    parser.add_argument("--branches", default="level 3", help="of the model, by commas")
    parser.add_argument("--unit", choices=("group", "image"), default="group", help="what counts once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = recipes.get("lite0").with_settings([f"branches={options.branches}", "image_height=256", "image_width=256"])
    paths = [sample.path for sample in read_dataset(options.data) if not sample.anomalous]
    groups = group_images(paths)[0] if options.unit == "group" else np.arange(len(paths))
    print(f"{options.data.name}: {len(paths)} good images, {len(set(groups.tolist()))} {options.unit}s")
    images = [load_image(path, config.image_size) for path in paths]
    random = np.random.default_rng(options.seed)
    shares: dict[float, list[float]] = {rate: [] for rate in RATES}
    expert = Remembering(AnomalyModel(ModelSpec.from_config(config), config.weights).expert.eval())
    for _ in range(options.draws):
        order = random.permutation(groups.max() + 1)
        chosen = np.flatnonzero(np.cumsum(np.bincount(groups)[order]) >= options.images)[0] + 1
        own = np.isin(groups, order[:chosen])
        others = np.sort(random.permutation(np.flatnonzero(~own))[: options.judged])
        alarms = _draw(
            config, expert, [images[i] for i in np.flatnonzero(own)], groups[own], [images[i] for i in others]
        )
        for rate, found in alarms.items():
            shares[rate].append(_by_group(found, groups[others]))
    for rate, each in shares.items():
        if not each:
            print(f"rate {rate}: needs {units_needed(rate)} units, fewer were drawn")
            continue
        mean, error = float(np.mean(each)), float(np.std(each, ddof=1) / len(each) ** 0.5)
        verdict = "within the promise" if mean <= rate + 2 * error else "ABOVE THE PROMISE"
        print(f"rate {rate}: false alarms {mean:.4f} +- {error:.4f} over {len(each)} draws: {verdict}")


def _draw(
    config: Config, expert: Remembering, own: Sequence[Tensor], groups: np.ndarray, others: Sequence[Tensor]
) -> dict[float, np.ndarray]:
    """For each rate that the draw can promise, whether each other good image raises a false alarm."""
    n = len(own)
    components = components_for(n, config.context_share, n)
    spec = CategorySpec.from_config(config, components=components, baseline=config.baseline_share > 0)
    model = AnomalyModel(ModelSpec.from_config(config, [spec])).eval()
    model.expert = expert
    units = np.unique(groups, return_inverse=True)[1]
    left_out = fit_branches(
        model, 0, own, units, FitSettings("equal", baseline_share=config.baseline_share, seed=config.seed)
    )
    good = GoodScores(left_out.scores.tolist(), left_out.maxima.tolist(), units.tolist())
    calibration = Calibration.fit({"": good}, max(RATES), method="cross")
    with torch.inference_mode():
        scores = torch.cat([model.judge(part)[1] for part in torch.stack(list(others)).split(16)]).tolist()
    promised = [rate for rate in RATES if units.max() + 1 >= units_needed(rate)]
    at = {rate: calibration.at_rate(rate) for rate in promised}
    return {rate: np.array([own.decide(score) for score in scores]) for rate, own in at.items()}


def _by_group(alarms: np.ndarray, groups: np.ndarray) -> float:
    """The mean over groups of the share of a group's images that raise an alarm."""
    numbers = np.unique(groups, return_inverse=True)[1]
    return float((np.bincount(numbers, alarms) / np.bincount(numbers)).mean())


if __name__ == "__main__":
    main()
