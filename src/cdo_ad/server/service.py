"""All parts of a running server, put together once."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdo_ad.bundle import read_bundle
from cdo_ad.files import exclusive, writing
from cdo_ad.server.line.station import Station
from cdo_ad.server.metrics import Metrics
from cdo_ad.server.serving.inspector import Inspector
from cdo_ad.server.serving.models import Models
from cdo_ad.server.settings import ServerSettings
from cdo_ad.server.store.audit import AuditTrail
from cdo_ad.server.store.catalogue import Catalogue, Version
from cdo_ad.server.store.database import open_database
from cdo_ad.server.store.history import History
from cdo_ad.server.store.images import ImageStore
from cdo_ad.server.store.keys import KeyStore
from cdo_ad.server.store.recorder import Recorder
from cdo_ad.server.teaching.golden import Activation
from cdo_ad.server.teaching.jobs import Jobs
from cdo_ad.server.teaching.school import School, summary_of
from cdo_ad.server.teaching.uploads import Uploads

__all__ = ["Service", "opened"]

log = logging.getLogger("cdo_ad.server")
TIDY_SECONDS = 600.0


@dataclass(frozen=True)
class Service:
    """What the routes use."""

    settings: ServerSettings
    metrics: Metrics
    catalogue: Catalogue
    models: Models
    history: History
    images: ImageStore
    keys: KeyStore
    audit: AuditTrail
    inspector: Inspector
    station: Station
    uploads: Uploads
    jobs: Jobs
    school: School
    activation: Activation

    def serve_run(self, run: Path, product: str) -> Version:
        """Make a run folder a version of a product and activate it, unless its weights are one already.

        Raises:
            BundleError: it is no complete run folder. ConfigError: a name that cannot be a product's, or a run that
                looks at depth.
        """
        bundle = read_bundle(run)
        bundle.require_images_alone("the server")
        self.catalogue.create(product)
        for version in self.catalogue.versions(product):
            same = version.summary.get("weights") == bundle.weights_sha256
            if same and Path(version.run).resolve() == run.resolve():
                return version
        version = self.catalogue.add_version(
            product, run.resolve(), "server", "served from a folder", summary_of(bundle)
        )
        self.catalogue.activate(product, version.number, "server")
        self.audit.add("server", "activate", product=product, version=version.number, run=str(run))
        self.models.refresh()
        return version

    async def tidy(self) -> None:
        """Remove images beyond the retention, now and then, until cancelled."""
        while True:
            days, gigabytes = self.settings.keep_days, self.settings.keep_gigabytes
            try:
                gone = await asyncio.to_thread(self.images.expire, days, gigabytes)
                gone += await asyncio.to_thread(self.images.sweep)
            except Exception:
                log.exception("old images cannot be removed")
            else:
                if gone:
                    log.info("removed old images", extra={"images": gone})
            await asyncio.sleep(TIDY_SECONDS)


@contextmanager
def opened(settings: ServerSettings) -> Iterator[Service]:
    """A service whose folder no other server uses.

    Raises:
        DatabaseError: the database cannot be used. BusyError: another server uses the folder.
        OutputError: the folder cannot be written to.
    """
    folder = settings.folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
    with exclusive(folder):
        engine = open_database(settings.database_url)
        metrics, catalogue, audit = Metrics(), Catalogue(engine), AuditTrail(engine)
        images = ImageStore(engine, folder / "images")
        models = Models(catalogue, settings.backend, settings.device)
        recorder = Recorder(engine, images)
        inspector = Inspector(settings, models, images, recorder, metrics)
        station = Station(engine, inspector, metrics)
        history, jobs, uploads = (
            History(engine),
            Jobs(engine, folder),
            Uploads(folder / "teaching", settings.max_pixels),
        )
        school = School(folder, jobs, uploads, catalogue, history, images, audit, settings.device)
        service = Service(
            settings, metrics, catalogue, models, history, images, KeyStore(engine), audit, inspector, station, uploads,
            jobs, school, Activation(catalogue, models, images, audit),
        )  # fmt: skip
        try:
            yield service
        finally:
            jobs.close()
            inspector.close()
            recorder.close()
            station.close()
            engine.dispose()
