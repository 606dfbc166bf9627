"""Routes that teach: uploads of good images, the check, training and adaptation as jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Response, UploadFile
from pydantic import BaseModel, Field

from cdo_ad.errors import ImageError
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.serving.decoding import clean_name, decode
from cdo_ad.server.web.access import Engineer, Served
from cdo_ad.server.web.drawing import thumbnail
from cdo_ad.server.web.problems import ERRORS

__all__ = ["router"]

router = APIRouter(responses=ERRORS, tags=["teach"])
Value = bool | int | float | str


class Plan(BaseModel):
    """How to train."""

    recipe: str = Field(default="lite0", max_length=50)
    rate: float = Field(default=0.05, gt=0, lt=1, description="Share of good images that may be called anomalous")
    settings: dict[str, Value] = Field(default={}, max_length=20, description="epochs, image_height, seed, ...")
    note: str = Field(default="", max_length=200)

    def all_settings(self) -> dict[str, Any]:
        """With the rate."""
        return {**self.settings, "false_alarm_rate": self.rate}


class Adaptation(BaseModel):
    """How to learn from corrections."""

    epochs: int = Field(default=0, ge=0, le=100, description="0: the networks stay, which is quick")
    note: str = Field(default="", max_length=200)


@router.get("/v1/teach/{product}")
def uploads(service: Served, caller: Engineer, product: str) -> dict[str, Any]:
    """Good images that were uploaded for a product."""
    found = service.uploads.list(product)
    region = service.uploads.region(product) is not None
    return {"product": product, "count": len(found), "images": found, "region": region}


@router.post("/v1/teach/{product}/images")
def upload(
    service: Served, caller: Engineer, product: str, files: Annotated[list[UploadFile], File(description="Good images")]
) -> dict[str, Any]:
    """Add good images; those that cannot be used are named, the others are kept."""
    kept, refused = [], []
    for file in files:
        name = clean_name(file.filename)
        try:
            kept.append(service.uploads.add(product, file.file.read(), name))
        except ImageError as error:
            refused.append({"name": name, "error": str(error)})
    return {"kept": kept, "refused": refused, "count": len(service.uploads.list(product))}


@router.get("/v1/teach/{product}/images/{digest}", response_class=Response)
def uploaded(service: Served, caller: Engineer, product: str, digest: str) -> Response:
    """A small JPEG of an uploaded image."""
    return Response(thumbnail(decode(service.uploads.read(product, digest), digest)), media_type="image/jpeg")


@router.delete("/v1/teach/{product}/images/{digest}")
def remove(service: Served, caller: Engineer, product: str, digest: str) -> dict[str, Any]:
    """Take an uploaded image away."""
    service.uploads.remove(product, digest)
    return uploads(service, caller, product)


@router.get("/v1/teach/{product}/region", response_class=Response)
def region(service: Served, caller: Engineer, product: str) -> Response:
    """The region of interest as a mask: white is inspected."""
    data = service.uploads.region(product)
    if data is None:
        raise NotFoundError(f"{product} has no region of interest: the whole image is inspected")
    return Response(data, media_type="image/png")


@router.put("/v1/teach/{product}/region")
def set_region(
    service: Served, caller: Engineer, product: str, file: Annotated[UploadFile, File(description="A mask as PNG")]
) -> dict[str, Any]:
    """Inspect only where a mask is white; trainings from now on respect it."""
    service.uploads.set_region(product, file.file.read())
    return uploads(service, caller, product)


@router.delete("/v1/teach/{product}/region")
def remove_region(service: Served, caller: Engineer, product: str) -> dict[str, Any]:
    """Inspect the whole image."""
    service.uploads.set_region(product, None)
    return uploads(service, caller, product)


@router.post("/v1/teach/{product}/check", status_code=202)
def check(service: Served, caller: Engineer, product: str, plan: Plan) -> dict[str, Any]:
    """Look for what is wrong with the uploads; a job whose result is the findings."""
    return service.school.check(product, plan.recipe, plan.all_settings(), caller.name)


@router.post("/v1/teach/{product}/train", status_code=202)
def train(service: Served, caller: Engineer, product: str, plan: Plan) -> dict[str, Any]:
    """Train a new version from the uploads; a job whose result names the version."""
    return service.school.train(product, plan.recipe, plan.all_settings(), caller.name, plan.note)


@router.post("/v1/models/{product}/adapt", status_code=202)
def adapt(service: Served, caller: Engineer, product: str, how: Adaptation) -> dict[str, Any]:
    """Learn from the corrections that no version has learned from; a job whose result is a new version."""
    return service.school.adapt(product, how.epochs, caller.name, how.note)


@router.get("/v1/jobs")
def jobs(service: Served, caller: Engineer) -> list[dict[str, Any]]:
    """The last jobs."""
    return service.jobs.list()


@router.get("/v1/jobs/{uid}")
def job(service: Served, caller: Engineer, uid: str) -> dict[str, Any]:
    """A job: its state, its progress, its result."""
    return service.jobs.get(uid)


@router.post("/v1/jobs/{uid}/cancel")
def cancel(service: Served, caller: Engineer, uid: str) -> dict[str, Any]:
    """End a job."""
    found = service.jobs.cancel(uid)
    service.audit.add(caller.name, "cancel job", job=uid)
    return found
