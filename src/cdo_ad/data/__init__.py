"""Data sets and images: readers of layouts, the only image decoder, the split, the store of training images.

Nothing here needs torch but `cdo_ad.data.store`, which is imported by its own name.
"""

from cdo_ad.data.decode import as_rgb, decode_image, list_images, read_image, read_mask, write_png16
from cdo_ad.data.readers.layout import LAYOUTS, detect_layout, list_categories, read_categories, read_dataset
from cdo_ad.data.split import GoodSplit, fingerprint, hold_out, split_by_part, split_good

__all__ = [
    "LAYOUTS",
    "GoodSplit",
    "as_rgb",
    "decode_image",
    "detect_layout",
    "fingerprint",
    "hold_out",
    "list_categories",
    "list_images",
    "read_categories",
    "read_dataset",
    "read_image",
    "read_mask",
    "split_by_part",
    "split_good",
    "write_png16",
]
