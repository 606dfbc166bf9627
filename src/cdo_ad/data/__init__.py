"""Data sets and images: readers of layouts, the only image decoder, groups and folds, the store of training images.

Nothing here needs torch but `cdo_ad.data.store` and `cdo_ad.data.defects`, which are imported by their own names.
"""

from cdo_ad.data.convert import as_rgb
from cdo_ad.data.decode import decode_image, read_image
from cdo_ad.data.listing import list_folder, list_images
from cdo_ad.data.masks import read_mask
from cdo_ad.data.readers.layout import LAYOUTS, detect_layout, list_categories, read_categories, read_dataset

__all__ = [
    "LAYOUTS",
    "as_rgb",
    "decode_image",
    "detect_layout",
    "list_categories",
    "list_folder",
    "list_images",
    "read_categories",
    "read_dataset",
    "read_image",
    "read_mask",
]
