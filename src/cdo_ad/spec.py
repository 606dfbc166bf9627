"""What a model is made of: with it and the weights alone a model is built; saved as JSON in every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from cdo_ad.config import Branches, BranchName, Config, look_at_depth
from cdo_ad.files import Document
from cdo_ad.region import MOST_TEXT, unpack_region

__all__ = ["CENTRES", "CategorySpec", "ModelSpec"]

CENTRES = 1000
"""Vectors of a bank."""


class CategorySpec(Document):
    """What the branches of one category are made of."""

    name: str = ""
    branches: Branches
    """Those that have a weight."""
    standardized: bool
    """False for the paper's form: the disagreement alone, as it is."""
    components: int = Field(default=0, ge=0)
    """Of the context that the Gaussians of features are conditional on."""
    intensity_components: int = Field(default=0, ge=0)
    """The same for the Gaussians of intensities and of depth."""
    centres: int = Field(default=1, ge=1)
    """Vectors of the bank."""
    defect_head: bool = False
    baseline: bool = False
    """What lies in the image as a whole is taken off its map."""
    region: str = Field(default="", max_length=MOST_TEXT)
    """The region of interest at the input size, see `cdo_ad.region`; empty for the whole image."""

    @classmethod
    def from_config(
        cls,
        config: Config,
        name: str = "",
        components: int = 0,
        intensity_components: int = 0,
        baseline: bool = False,
        region: str = "",
    ) -> Self:
        """What settings ask for; a bank has `CENTRES` vectors."""
        return cls(
            name=name,
            branches=config.branches,
            standardized=config.branches != ("disagreement",),
            components=components,
            intensity_components=intensity_components,
            centres=CENTRES,
            baseline=baseline,
            region=region,
        )


class ModelSpec(Document):
    """What a model is made of: with it and the weights alone the model is built, see `cdo_ad.method.model`."""

    backbone: str
    image_size: tuple[int, int]
    """(height, width) of the networks' input in pixels."""
    tile: int = Field(default=0, ge=0)
    """Side of the tiles that images are judged in, pixels of the image; 0 for whole images."""
    normalize_brightness: bool
    blur_sigma: float = Field(ge=0)
    score_top: float = Field(ge=0, lt=1)
    categories: tuple[CategorySpec, ...] = Field(min_length=1)
    """In the order in which the model numbers them; one of no name in most runs."""

    @model_validator(mode="after")
    def _regions_fit(self) -> Self:
        for category in self.categories:
            if category.region and unpack_region(category.region).shape != self.image_size:
                raise ValueError(f"the region of {category.name!r} is not of the input's size")
        return self

    @classmethod
    def from_config(cls, config: Config, categories: Sequence[CategorySpec] = ()) -> ModelSpec:
        """The model that settings describe; its branches are still to be fitted."""
        return cls(
            backbone=config.backbone,
            image_size=config.image_size,
            tile=config.tile,
            normalize_brightness=config.normalize_brightness,
            blur_sigma=config.blur_sigma,
            score_top=config.score_top,
            categories=tuple(categories) or (CategorySpec.from_config(config),),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories."""
        return tuple(category.name for category in self.categories)

    @property
    def branches(self) -> tuple[BranchName, ...]:
        """All branches that any category has."""
        return tuple(dict.fromkeys(name for category in self.categories for name in category.branches))

    @property
    def depth(self) -> bool:
        """True where images are judged with their point clouds."""
        return look_at_depth(self.branches)
