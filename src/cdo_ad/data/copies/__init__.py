"""Near copies: images of one part, told from images of other parts that look alike."""

from cdo_ad.data.copies.groups import Grouping, group_copies

__all__ = ["Grouping", "group_copies"]
