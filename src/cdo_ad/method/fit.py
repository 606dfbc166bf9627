"""After the training: the density, what each branch scores on good images, and its share.

From good images alone, or with a few labelled defects, which have a say in the shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cdo_ad.errors import ConfigError
from cdo_ad.method.anomalies import KINDS, add_anomaly
from cdo_ad.method.defect_head import STEPS, fit_defect_head
from cdo_ad.method.density import Density
from cdo_ad.method.discrepancy import discrepancies
from cdo_ad.method.fusion import FUSED, informed_weights, separation
from cdo_ad.method.network import CdoNetwork
from cdo_ad.method.white_noise import image_seed

__all__ = ["fit_branches", "scores_without"]

FOLD = 48
"""Images, a quarter of all at most, that the shares are learned on; the Gaussians that they judge are fitted on the
others."""
SMALLEST_FOLD = 8
"""With fewer images the shares stay equal."""
CONTRAST = 0.5
"""Of the anomalies that the shares are learned on: at their full contrast several branches see nearly all, and the shares
say little."""
KEPT = 256
"""Images whose left-out scores tell what is usual."""


@torch.no_grad()
def fit_branches(
    network: CdoNetwork,
    batches: Iterable[Tensor],
    count: int,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    defects: tuple[Tensor, Tensor] | None = None,
    defect_head_weight: float = 0.0,
) -> None:
    """Fit the network's density and set its `usual` and `shares`; leaves the network in eval mode.

    Args:
        network: trained, with a density.
        batches: the fit images, unperturbed, in random order: (B, 3, H, W) uint8 at `image_size`, on its device.
        count: how many images that is.
        shares: one a branch of `FUSED`, used as they are; None learns them (`cdo_ad.method.fusion`).
        seed: of the synthetic anomalies.
        progress: told what is done and what is to be done in all: images looked at, and the defect_head's steps.
        defects: labelled defects that the apprentice has been trained on, (K, 3, H, W) uint8, and where they are,
            (K, H, W) bool: where shares are learned, each counts as much as a kind of synthetic anomalies.
        defect_head_weight: with defects, how much of the map is for the branch that recognises them
            (`cdo_ad.method.defect_head`); the others give it up in proportion. 0, or fewer than 32 good images, for
            no such branch.

    Raises:
        ConfigError: no density; fewer than two images, or images without any variation.
    """
    density = network.density
    if density is None:
        raise ConfigError("these networks have no density to fit: set density=true")
    network.eval()
    recognised = defects if defect_head_weight > 0 else None
    judging = shares is None or recognised is not None
    fold_size = min(FOLD, count // 4) if judging and count >= 4 * SMALLEST_FOLD else 0
    looked = count + (fold_size * len(KINDS) if shares is None else 0)
    total, done = looked + (STEPS if recognised is not None and fold_size else 0), 0
    fold, rest = density.moments(), density.moments()
    fold_images: list[Tensor] = []
    kept: list[tuple[Tensor, list[Tensor]]] = []
    disagreements = []
    for images in batches:
        expert, apprentice = network.features(images)
        disagreements.append(_disagreement_scores(network, expert, apprentice))
        inside = max(0, min(len(images), fold_size - done))
        density.add(fold, images[:inside], [f[:inside] for f in expert])
        density.add(rest, images[inside:], [f[inside:] for f in expert])
        if inside:
            fold_images.append(images[:inside])
        if done < KEPT:
            kept.append((images, expert))
        done += len(images)
        progress(done, total)
    branches = torch.full((len(FUSED),), 1 / len(FUSED)) if shares is None else torch.tensor(shares)
    if fold_images:
        density.fit(rest)
        unseen = torch.cat(fold_images)
        if shares is None:
            labelled = None if defects is None else defects[0]
            branches = _learned_weights(network, density, unseen, labelled, seed, lambda k: progress(done + k, total))
        if recognised is not None:  # with fewer good images there is nothing to learn it against
            _fit_defect_head(network, density, unseen, recognised, seed, lambda step: progress(looked + step, total))
            branches = torch.cat([(1 - defect_head_weight) * branches, branches.new_tensor([defect_head_weight])])
    network.shares.copy_(branches)
    density.fit([a + b for a, b in zip(fold, rest, strict=True)])
    usual = torch.cat([_scores(network, density.left_out(images, expert)) for images, expert in kept], dim=1)
    density.usual.copy_(usual.mean(dim=1))
    network.usual.copy_(torch.cat(disagreements).mean())


@torch.no_grad()
def scores_without(network: CdoNetwork, groups: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Score each image by a density that was fitted without it and its copies.

    The apprentice is left as it is, so its part of a score is somewhat small.

    Args:
        network: after `fit_branches` on all the groups; is so again afterwards.
        groups: at least two times (B, 3, H, W) uint8 images, each an image and its copies.

    Returns:
        Image score and largest map value of each image, group by group.
    """
    density = network.density
    if density is None:
        raise ConfigError("these networks have no density to fit: set density=true")
    network.eval()
    own = [density.moments() for _ in groups]
    for sums, images in zip(own, groups, strict=True):
        density.add(sums, images, network.features(images)[0])
    total = own[0]
    for sums in own[1:]:
        total = [a + b for a, b in zip(total, sums, strict=True)]
    usual, results = density.usual.clone(), []
    for sums, images in zip(own, groups, strict=True):
        density.fit([a - b for a, b in zip(total, sums, strict=True)])
        density.usual.copy_(usual)
        maps, scores = network(images)
        results += list(zip(scores.tolist(), maps.flatten(1).amax(dim=1).tolist(), strict=True))
    density.fit(total)
    density.usual.copy_(usual)
    return results


def _learned_weights(
    network: CdoNetwork,
    density: Density,
    images: Tensor,
    defects: Tensor | None,
    seed: int,
    progress: Callable[[int], None],
) -> Tensor:
    """Shares from images that the Gaussians at hand have not seen, anomalies drawn into them, and defects."""
    good = _branch_scores(network, density, images)
    separations = []
    for k, kind in enumerate(KINDS):
        changed, masks = add_anomaly(images, kind, [image_seed(seed, k, i) for i in range(len(images))])
        drawn = masks.flatten(1).any(dim=1)
        faint = torch.lerp(images[drawn].float(), changed[drawn].float(), CONTRAST).round().to(torch.uint8)
        if drawn.any():
            separations.append(separation(good, _branch_scores(network, density, faint)))
        progress((k + 1) * len(images))
    if defects is not None and separations:
        # the apprentice knows these defects, so they tell nothing of how it sees others
        disagreement = torch.stack(separations).mean(dim=0)[0]
        for scores in _branch_scores(network, density, defects.to(images.device)).unbind(dim=1):
            row = separation(good, scores[:, None])
            row[0] = disagreement
            separations.append(row)
    return informed_weights(torch.stack(separations))


def _fit_defect_head(
    network: CdoNetwork,
    density: Density,
    good: Tensor,
    labelled: tuple[Tensor, Tensor],
    seed: int,
    progress: Callable[[int], None],
) -> None:
    """Train it with most of the good images; the others, new to it, tell what is usual."""

    def vectors(images: Tensor) -> Tensor:
        parts = []
        for images in torch.split(images.to(good.device), 16):
            expert = network.expert(network.normalise(images))
            parts.append(density.stacked(density.whitened(images, expert)))
        return torch.cat(parts)

    defects, masks = labelled
    known, new = good[len(good) // 4 :], good[: len(good) // 4]
    with torch.random.fork_rng():  # its start follows from the seed alone
        torch.manual_seed(seed)
        defect_head = network.add_defect_head()
    with torch.enable_grad():
        fit_defect_head(defect_head, vectors(known), vectors(defects), masks.to(good.device), seed, progress)
    defect_head.usual.copy_(network.finish([defect_head(vectors(new))])[1].mean())


def _branch_scores(network: CdoNetwork, density: Density, images: Tensor, batch_size: int = 16) -> Tensor:
    """(V, B) image scores of images by each of `FUSED` alone."""
    scores = []
    for images in torch.split(images, batch_size):
        expert, apprentice = network.features(images)
        alone = [_disagreement_scores(network, expert, apprentice)[None]]
        scores.append(torch.cat([*alone, _scores(network, density(images, expert))]))
    return torch.cat(scores, dim=1)


def _disagreement_scores(network: CdoNetwork, expert: Sequence[Tensor], apprentice: Sequence[Tensor]) -> Tensor:
    return network.finish(discrepancies(expert, apprentice))[1]


def _scores(network: CdoNetwork, maps: Sequence[Tensor]) -> Tensor:
    """(V, B) image scores by each of V maps alone."""
    return torch.stack([network.finish([m])[1] for m in maps])
