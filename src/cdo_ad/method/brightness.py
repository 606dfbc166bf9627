"""Images of one mean brightness, whatever the light or the shutter.

Features of an ImageNet network change with an image's brightness, and its contrast with it: a crack in a dark image
hardly shows. One factor for the whole image and all colours takes that out, and leaves colours and local intensities as
they are in proportion. Chosen on two drawn products and on solar cells (LOG.md).
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["normalize_brightness"]

DARKEST = 8.0
"""Mean brightness below which an image counts as this bright: what is nearly black would be blown up to mere noise."""
STEPS = 64
"""To how many parts of a gray level the mean is rounded. Engines add up in another order, even one engine for another
batch; the last bit of a factor would then move every pixel by as much, and int8 rounds some of them the other way."""
BRIGHTEST = 400.0
"""Highest value that a pixel can get. White is 255; a highlight of a dark image may lie above, within bounds that
leave int8 enough steps for the rest."""


def normalize_brightness(images: Tensor, brightness: Tensor) -> Tensor:
    """Each image times `brightness` / its own mean.

    Args:
        images: (B, 3, H, W) float RGB in 0..255.
        brightness: () the mean that all shall have, in the same unit.

    Returns:
        (B, 3, H, W) float in [0, `BRIGHTEST`].
    """
    own = (images.mean(dim=(1, 2, 3), keepdim=True) * STEPS).round() / STEPS
    own = own.clamp(min=DARKEST)
    return (images * (brightness / own)).clamp(max=BRIGHTEST)
