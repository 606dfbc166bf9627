"""What a folder's name says of its images: good, or the name of a defect. Decided here for all readers."""

from __future__ import annotations

import re
from pathlib import Path

from cdo_ad.errors import DataError
from cdo_ad.types import GOOD

__all__ = ["GOOD_WORDS", "is_good", "label_of"]

GOOD_WORDS = frozenset({"good", "ok", "okay", "normal", "pass", "passed", "gut", "io", "inordnung"})
"""Names of folders of good images, in any letter case; dots, spaces, `_` and `-` in a name do not count (`i.O.`)."""

UNKNOWN_WORDS = frozenset({"unknown", "unlabelled", "unlabeled", "unsorted", "unclear"})
NEGATIONS = frozenset({"no", "not", "non", "nicht", "ab", "un"})


def is_good(name: str) -> bool:
    """Tell whether a name, as a whole, means good."""
    return re.sub(r"[\s._-]", "", name.casefold()) in GOOD_WORDS


def label_of(folder: Path) -> str:
    """`good`, or the folder's name as the name of a defect.

    Raises:
        DataError: if the name leaves open whether its images are good, such as `good_2`, `OK or NG` or `unknown`.
    """
    if is_good(folder.name):
        return GOOD
    words = [word for word in re.split(r"[\W\d_]+", folder.name.casefold()) if word]
    negated = bool(words) and words[0] in NEGATIONS
    if (not negated and GOOD_WORDS.intersection(words)) or UNKNOWN_WORDS.intersection(words):
        raise DataError(
            f"{folder}: the name does not say whether its images are good: rename the folder to {GOOD}, or to the name "
            "of the defect"
        )
    return folder.name
