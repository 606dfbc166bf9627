"""After the apprentice's training: the branches of a run's networks, of each product where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdo_ad.calibration import Calibration, conformal_threshold, images_needed
from cdo_ad.config import Config
from cdo_ad.data.defects import Defects
from cdo_ad.data.few import CopyStore
from cdo_ad.data.store import ImageStore, load_all
from cdo_ad.inference.detector import calibration_scores
from cdo_ad.inference.engines.torch import TorchRuntime
from cdo_ad.method.categories import UnifiedNetwork
from cdo_ad.method.density import whole_image
from cdo_ad.method.fit import fit_branches
from cdo_ad.method.network import CdoNetwork
from cdo_ad.progress import progress_bar

__all__ = ["calibrate_categories", "fit_all_branches"]

Part = tuple[CdoNetwork, list[int], tuple[Tensor, Tensor] | None]
"""One product's networks, its fit images' places in the store, and images and masks of its labelled defects."""


def fit_all_branches(
    network: CdoNetwork,
    store: ImageStore | CopyStore,
    products: Sequence[int],
    defects: Defects | None,
    config: Config,
    device: torch.device,
) -> None:
    """Fit the density of each product, see `cdo_ad.method.fit.fit_branches`.

    Args:
        network: trained, with a density or several.
        store: the fit images.
        products: how many of them, in their order, show each product; with none, `network` tells them apart as it was
            fitted to do.
        defects: labelled defects, of any product.
        config: the settings.
        device: where the networks are.

    Raises:
        ConfigError: from `fit_branches`.
    """
    known = None if defects is None else (defects.images, defects.masks)
    parts: list[Part] = [(network, list(range(len(store))), known)]
    if isinstance(network, UnifiedNetwork):
        parts = _by_product(network, store, products, known, config.batch_size, device)
    for k, (member, places, labelled) in enumerate(parts):
        with progress_bar() as bar:
            which = f" of product {k + 1} of {len(parts)}" if len(parts) > 1 else ""
            task = bar.add_task(f"fitting the density{which}", total=len(places), note="")

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)  # noqa: B023  called within this round only

            fit_branches(
                member,
                _unperturbed(store, places, config, device),
                len(places),
                config.shares(),
                config.seed,
                progress,
                labelled,
                config.defect_head_weight,
            )


@torch.no_grad()
def _by_product(
    network: UnifiedNetwork,
    store: ImageStore | CopyStore,
    products: Sequence[int],
    defects: tuple[Tensor, Tensor] | None,
    batch_size: int,
    device: torch.device,
) -> list[Part]:
    """What belongs to each product; tells `network` what they look like, where `products` says it."""
    network.eval()
    batches = torch.split(torch.arange(len(store)), batch_size)
    seen = [_last_level(network, torch.stack([store[int(i)] for i in batch]), device) for batch in batches]
    if products:
        network.fit_categories(torch.split(torch.cat([whole_image(maps) for maps in seen]), list(products)))
        shown = torch.repeat_interleave(torch.arange(len(products)), torch.tensor(products))
    else:
        shown = torch.cat([network.which(maps) for maps in seen]).cpu()
    places: list[list[int]] = [(shown == k).nonzero().flatten().tolist() for k in range(len(network.products))]
    if defects is None:
        return [(member, at, None) for member, at in zip(network.members(), places, strict=True)]
    images, masks = defects
    batches = torch.split(images, batch_size)
    of = torch.cat([network.which(_last_level(network, batch, device)) for batch in batches]).cpu()
    labelled = [(images[of == k], masks[of == k]) if bool((of == k).any()) else None for k in range(len(places))]
    return list(zip(network.members(), places, labelled, strict=True))


@torch.no_grad()
def calibrate_categories(
    network: UnifiedNetwork, paths: Sequence[Path], config: Config, device: torch.device
) -> Calibration:
    """Give each product's scores the unit of its own threshold, and calibrate in these units.

    Each product then keeps the promised rate of false alarms by itself, up to rounding. A product with too few held-out
    images for the rate takes the threshold of all.

    Args:
        network: its branches are fitted.
        paths: the held-out good images.
        config: the settings, for the rate.
        device: where the networks are.

    Raises:
        CalibrationError: too few images in all.
        ImageError: an image that cannot be read.
    """
    rate = config.false_alarm_rate
    network.units.fill_(1)
    scores, maxima = map(np.array, calibration_scores(TorchRuntime(network, device), paths))
    batches = torch.split(load_all(paths, config.image_size), config.batch_size)
    shown = torch.cat([network.which(_last_level(network, batch, device)) for batch in batches]).cpu().numpy()
    for k in range(len(network.products)):
        own = scores[shown == k]
        network.units[k] = conformal_threshold(own if len(own) >= images_needed(rate) else scores, rate)
    units = network.units.cpu().numpy()[shown]
    return Calibration.fit(scores / units, maxima / units, rate).at_least(network.least_threshold)


def _last_level(network: UnifiedNetwork, images: Tensor, device: torch.device) -> list[Tensor]:
    """What tells the products apart: the last of the expert's maps, as a list of one."""
    maps: list[Tensor] = network.expert(network.normalise(images.to(device)))
    return maps[-1:]


def _unperturbed(
    store: ImageStore | CopyStore, places: Sequence[int], config: Config, device: torch.device
) -> Iterator[Tensor]:
    """Every image at `places` once, in random order."""
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(config.seed)).tolist()
    for start in range(0, len(order), config.batch_size):
        yield torch.stack([store[places[i]] for i in order[start : start + config.batch_size]]).to(device)
