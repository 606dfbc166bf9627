"""`cdo-ad serve --demo`: everything that the server does, with the drawn products and a drawn line."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad import recipes
from cdo_ad.bundle import is_run
from cdo_ad.config import Config
from cdo_ad.demo.products import DEFECTS, PRODUCTS, make_dataset, render
from cdo_ad.server.line.frames import Frame
from cdo_ad.server.service import Service

__all__ = ["DrawnLine", "demo_config", "set_up_demo"]

log = logging.getLogger("cdo_ad.server")
DEFECT_SHARE = 0.15
SIDE = 192


class DrawnLine:
    """A camera over a belt of drawn parts: one every few seconds, and a share of them defective."""

    live = True

    def __init__(self, product: str, seconds: float = 2.0) -> None:
        """Draw a product."""
        self._product, self._seconds, self._count = product, seconds, 0

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        chance = np.random.default_rng()
        while not stop.wait(self._seconds):
            self._count += 1
            defect = str(chance.choice(DEFECTS[self._product])) if chance.random() < DEFECT_SHARE else None
            key = (9, int(chance.integers(2**31)))
            image, _ = render(self._product, key, defect=defect, size=SIDE)
            yield Frame(f"{self._product} {self._count} ({defect or 'good'})", image, time.time())

    def close(self) -> None:
        """See `Source.close`."""

    def status(self) -> dict[str, Any]:
        """See `Source.status`."""
        return {"connected": True, "arrived": self._count}


def set_up_demo(service: Service, say: Callable[[str], None], images: int = 40) -> None:
    """Draw the products, train on them where that was not done, and attach lines, golden samples, a shadow, uploads.

    Args:
        service: the server's parts, before it starts.
        say: told what goes on, since the first start takes minutes.
        images: good images of each product.

    Raises:
        DataError, OutputError, TrainingError: as `cdo_ad.train`.
    """
    folder = service.settings.folder / "demo"
    for product in PRODUCTS:
        run = folder / "runs" / product
        data = make_dataset(folder / "data", product, train=images, test_good=4, per_type=1, size=SIDE)
        if not is_run(run):
            say(f"training on {images} drawn images of {product} ...")
            _train(data, run)
        version = service.serve_run(run, product)
        _add_golden(service, product, version.number, data)
        service.station.add_source(f"{product} belt", product, DrawnLine(product))
    _add_shadow(service, PRODUCTS[0])
    for file in sorted((folder / "data" / PRODUCTS[-1] / "train" / "good").iterdir())[:24]:
        service.uploads.add("new part", file.read_bytes(), file.name)
    service.station.add_sink(f"jsonl:{folder / 'decisions.jsonl'}")


def demo_config() -> Config:
    """Settings that train in a minute or so: smaller images than a real product would get."""
    return recipes.lite0().replace(image_height=128, image_width=128)


def _train(data: Path, run: Path) -> None:
    from cdo_ad.training.train import train

    train(data, run, demo_config(), interrupted="discard")


def _add_golden(service: Service, product: str, version: int, data: Path) -> None:
    """A good image and a defect, where the version judges them right."""
    if service.catalogue.golden(product):
        return
    for kind in ("good", DEFECTS[product][0]):
        file = data / "test" / kind / "000.png"
        digest = service.images.add(file.read_bytes(), pinned=True)
        service.catalogue.add_golden(product, digest, kind != "good", f"{kind} {file.name}")
    for result in service.activation.judge(product, version):
        if not result.right:
            service.catalogue.remove_golden(product, result.id)


def _add_shadow(service: Service, product: str) -> None:
    """The same run again as a candidate: a shadow that always agrees."""
    versions = service.catalogue.versions(product)
    if len(versions) == 1:
        first = versions[0]
        second = service.catalogue.add_version(product, Path(first.run), "demo", "candidate", first.summary)
        service.catalogue.change(product, shadow=second.number)
        service.models.refresh()
