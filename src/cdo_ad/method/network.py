"""The two networks as one module: uint8 or float pictures in, discrepancy maps, anomaly map and score out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdo_ad.method.backbone import create_backbone
from cdo_ad.method.discrepancy import anomaly_map, discrepancies, image_score

__all__ = ["CdoNetwork"]


class CdoNetwork(nn.Module):
    """A frozen expert and an apprentice of the same architecture.

    The expert is in eval mode always, its parameters and buffers never change. `mean` and `std` are buffers, so
    preprocessing travels with the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int] = (256, 256),
        weights: str = "none",
        blur_sigma: float = 4.0,
        score_top: float = 0.0,
    ) -> None:
        """Build both networks; the apprentice starts from random weights (torch's global generator).

        Args:
            backbone: a timm model name.
            image_size: (H, W) of the networks' input in pixels.
            weights: the expert's weights, see `cdo_ad.method.backbone.create_backbone`.
            blur_sigma: of the anomaly map, in pixels of the input.
            score_top: see `cdo_ad.method.discrepancy.image_score`.

        Raises:
            ConfigError: from the backbone.
        """
        super().__init__()
        self.image_size = image_size
        self.blur_sigma = blur_sigma
        self.score_top = score_top
        self.apprentice = create_backbone(backbone, image_size)
        self.expert = create_backbone(backbone, image_size, weights)
        self.expert.requires_grad_(False)
        # for pictures in 0..255
        self.register_buffer("mean", torch.tensor(self.expert.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.expert.std).view(1, 3, 1, 1) * 255)
        self.train()

    def train(self, mode: bool = True) -> CdoNetwork:
        """Set the apprentice's mode; the expert stays in eval mode."""
        super().train(mode)
        self.expert.eval()
        return self

    def features(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Expert's and apprentice's three maps of pictures.

        Args:
            images: (B, 3, H, W) uint8 or float RGB in 0..255, at `image_size`.
        """
        normalised = self.normalise(images)
        with torch.no_grad():
            expert = self.expert(normalised)
        return expert, self.apprentice(normalised)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or float RGB in 0..255 to the float input of both networks."""
        return (images.float() - self.mean) / self.std

    def discrepancies(self, images: Tensor) -> list[Tensor]:
        """One (B, H_1, W_1) float32 discrepancy map a hierarchy, in [0, 4]; `images` as in `features`."""
        return discrepancies(*self.features(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps (B, H, W) float32 >= 0 and image scores (B,) of pictures as in `features`."""
        maps = anomaly_map(self.discrepancies(images), self.image_size, self.blur_sigma)
        return maps, image_score(maps, self.score_top)
