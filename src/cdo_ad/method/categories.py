"""One pair of networks for several products, and each product's own branches of an image.

Expert and apprentice serve all products; a density over several would describe none of them well, as a position shows
something else in each. So each product has its own density, shares and units, and an image gets those of the product
that its expert's features, averaged over the image, are nearest to. The last of the units is the product's own
threshold: good images of one product may scatter far more than another's, and one threshold in common units would
find no defect of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdo_ad.errors import ConfigError
from cdo_ad.method.defect_head import DEFECT_HEAD, DefectHead
from cdo_ad.method.density import BRANCHES, whole_image
from cdo_ad.method.network import LEVEL_NAMES, CdoNetwork, feature_shapes

if TYPE_CHECKING:
    from cdo_ad.config import Config

__all__ = ["UnifiedNetwork", "build"]

LEAST_WIDTH = 1e-3
"""Of a channel, in units of the mean width: one that never changes would decide alone."""


def build(config: Config, products: int = 1, weights: str | None = None) -> CdoNetwork:
    """The networks that the settings describe.

    Args:
        config: the settings; without a density there are no branches of a product's own.
        products: how many products they are for.
        weights: see `CdoNetwork.from_config`.

    Raises:
        ConfigError: from the backbone.
    """
    if products == 1 or not config.density:
        return CdoNetwork.from_config(config, weights)
    return UnifiedNetwork(config, products, weights)


class UnifiedNetwork(CdoNetwork):
    """A `CdoNetwork` whose branches depend on the product that it takes an image to show.

    `products` holds a `CdoNetwork` for each, all around the same expert and apprentice: fit its branches as if it were
    alone (`cdo_ad.method.fit`), and tell the products apart with `fit_categories`.
    """

    centres: Tensor
    widths: Tensor
    units: Tensor

    least_threshold = 1.0

    def __init__(self, config: Config, products: int, weights: str | None = None) -> None:
        """Build both networks; all branches are still to be fitted.

        Args:
            config: the settings, with a density.
            products: how many, at least two.
            weights: see `CdoNetwork.from_config`.

        Raises:
            ConfigError: from the backbone.
        """
        super().__init__(
            config.backbone,
            config.image_size,
            config.weights if weights is None else weights,
            config.blur_sigma,
            config.score_top,
            normalize_brightness=config.normalize_brightness,
        )
        self.products = nn.ModuleList(CdoNetwork.from_config(config, share=self) for _ in range(products))
        channels = feature_shapes(self.expert, self.image_size)[-1][0]
        self.register_buffer("centres", torch.zeros(products, channels))
        self.register_buffer("widths", torch.ones(channels))
        self.register_buffer("units", torch.ones(products))  # what each product's maps are divided by

    def members(self) -> list[CdoNetwork]:
        """`products`, typed."""
        return [network for network in self.products if isinstance(network, CdoNetwork)]

    def add_defect_head(self) -> DefectHead:
        """Not for all products at once: a defect_head belongs to one of `products`."""
        raise ConfigError("labelled defects are recognised product by product: add a defect_head to one of `products`")

    @torch.no_grad()
    def fit_categories(self, contexts: Sequence[Tensor]) -> None:
        """Tell the products apart.

        Args:
            contexts: one a product, (N_k, Q): `whole_image` of its good images.
        """
        self.centres.copy_(torch.stack([given.mean(dim=0) for given in contexts]))
        within = torch.cat([given - given.mean(dim=0) for given in contexts]).square().mean(dim=0).sqrt()
        self.widths.copy_(within.clamp(min=LEAST_WIDTH * float(within.mean())))

    def which(self, expert: Sequence[Tensor]) -> Tensor:
        """(B,) int64 the product that each image shows: the nearest centre, each channel in units of its width.

        Args:
            expert: the expert's (B, C_k, H_k, W_k) maps.
        """
        distances = ((whole_image(expert)[:, None] - self.centres) / self.widths).square().sum(dim=2)
        return distances.argmin(dim=1)

    def weigh(self, levels: Sequence[Tensor], images: Tensor, expert: list[Tensor]) -> dict[str, Tensor]:
        """What `CdoNetwork.weigh` gives, of each image's own product.

        A product that no image shows costs nothing here; in a traced or exported graph every product is computed.
        """
        product = self.which(expert)
        # a graph must not depend on the images
        constant = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        branches = {name: torch.zeros_like(levels[0]) for name in self._names()}
        for k, network in enumerate(self.members()):
            shown = (product == k)[:, None, None]
            if constant or bool(shown.any()):
                for name, seen in network.weigh(levels, images, expert).items():
                    branches[name] = torch.where(shown, seen / self.units[k], branches[name])
        return branches

    def _names(self) -> list[str]:
        densities = [network.density for network in self.members()]
        recognised = any(density is not None and density.defect_head is not None for density in densities)
        return [*LEVEL_NAMES, *BRANCHES, *([DEFECT_HEAD] if recognised else [])]
