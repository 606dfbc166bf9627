"""Routes of versions: list, compare, activate, roll back, shadow mode, golden samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Query, Response, UploadFile
from pydantic import BaseModel, Field

from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.service import Service
from cdo_ad.server.serving.decoding import clean_name, decode, pixels_of
from cdo_ad.server.serving.models import ModelId
from cdo_ad.server.web.access import Engineer, Operator, Served
from cdo_ad.server.web.drawing import thumbnail
from cdo_ad.server.web.problems import ERRORS

__all__ = ["router"]

router = APIRouter(responses=ERRORS, tags=["versions"])
Number = Annotated[int, Query(ge=1, le=2**31 - 1)]


class ProductSettings(BaseModel):
    """What can be set of a product; what is left out stays."""

    rate: float | None = Field(default=None, gt=0, lt=1, description="False-alarm rate of all its versions")
    golden_rule: Literal["block", "warn"] | None = None


class Shadow(BaseModel):
    """Which version judges without a say."""

    version: int | None = Field(default=None, ge=1, le=2**31 - 1, description="null for none")


class GoldenSample(BaseModel):
    """An inspection whose decision is known."""

    inspection: str = Field(max_length=32)
    anomalous: bool
    note: str = Field(default="", max_length=200)


@router.get("/v1/models/{product}/versions")
def versions(service: Served, caller: Operator, product: str) -> dict[str, Any]:
    """All versions, which one is active, which one is the shadow, and when each was activated."""
    about = service.catalogue.product(product)
    listed = [asdict(version) for version in service.catalogue.versions(product)]
    for each in listed:
        each["report"] = (Path(each.pop("run")) / "report.html").is_file()
    found: dict[str, Any] = {"active": about.active, "shadow": about.shadow, "versions": listed}
    if about.shadow is not None:
        found["shadow_summary"] = service.history.shadow_summary(product, about.shadow)
    return {**found, "activations": service.catalogue.activations(product)}


@router.get("/v1/models/{product}/versions/{version}/report", response_class=Response)
def report(service: Served, caller: Engineer, product: str, version: int) -> Response:
    """The report of a version: one page for a download, which needs nothing else."""
    file = Path(service.catalogue.version(product, _number(version)).run) / "report.html"
    if not file.is_file():
        raise NotFoundError(f"version {version} of {product} has no report: make it with  cdo-ad report")
    headers = {"Content-Disposition": f'attachment; filename="report-{version}.html"'}
    return Response(file.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


@router.get("/v1/models/{product}/compare")
def compare(service: Served, caller: Engineer, product: str, a: Number, b: Number) -> dict[str, Any]:
    """Two versions beside each other: what they were made from, golden samples, what the shadow saw."""
    found = {}
    for name, number in (("a", a), ("b", b)):
        version = service.catalogue.version(product, number)
        golden = [each.to_json() for each in service.activation.judge(product, number)]
        shadow = service.history.shadow_summary(product, number)
        found[name] = {"version": number, "summary": version.summary, "golden": golden, "shadow": shadow}
    return found


@router.post("/v1/models/{product}/versions/{version}/activate")
def activate(service: Served, caller: Engineer, product: str, version: int) -> dict[str, Any]:
    """Make a version judge; refused, or warned of, where it judges a golden sample wrong."""
    results = service.activation.activate(product, _number(version), caller.name)
    return {"active": version, "golden": [each.to_json() for each in results]}


@router.post("/v1/models/{product}/rollback")
def roll_back(service: Served, caller: Engineer, product: str) -> dict[str, Any]:
    """Make the version judge that did so before the present one."""
    service.catalogue.product(product)
    version = service.catalogue.before(product)
    results = service.activation.activate(product, version, caller.name, "roll back")
    return {"active": version, "golden": [each.to_json() for each in results]}


@router.put("/v1/models/{product}/shadow")
def shadow(service: Served, caller: Engineer, product: str, which: Shadow) -> dict[str, Any]:
    """Let a version judge all images beside the active one, without a say; or none."""
    service.catalogue.product(product)
    if which.version is not None:
        service.models.get(ModelId(product, which.version))
    service.catalogue.change(product, shadow=which.version)
    service.models.refresh()
    service.audit.add(caller.name, "shadow", product=product, version=which.version)
    return versions(service, caller, product)


@router.put("/v1/models/{product}/settings")
def settings(service: Served, caller: Engineer, product: str, new: ProductSettings) -> dict[str, Any]:
    """Set a product's false-alarm rate, and what a wrong golden sample does."""
    about = service.catalogue.product(product)
    changes = {key: value for key, value in new.model_dump().items() if value is not None}
    if new.rate is not None and about.active is not None:
        service.models.get(ModelId(product, about.active)).at_rate(new.rate)  # refuses what cannot be guaranteed
    if changes:
        service.catalogue.change(product, **changes)
        service.models.refresh()
        service.audit.add(caller.name, "settings", product=product, **changes)
    return asdict(service.catalogue.product(product))


@router.get("/v1/models/{product}/golden")
def golden(service: Served, caller: Operator, product: str) -> list[dict[str, Any]]:
    """The golden samples of a product."""
    service.catalogue.product(product)
    return service.catalogue.golden(product)


@router.post("/v1/models/{product}/golden", status_code=201)
def add_golden(service: Served, caller: Engineer, product: str, sample: GoldenSample) -> list[dict[str, Any]]:
    """Make an inspection's image a golden sample."""
    service.catalogue.product(product)
    row = service.history.get(sample.inspection)
    if row["image"] is None:
        raise NotFoundError(f"the image of inspection {sample.inspection} was not kept: upload it as a golden sample")
    service.images.read(row["image"])
    return _add_golden(service, caller.name, product, row["image"], sample.anomalous, sample.note or row["name"])


@router.post("/v1/models/{product}/golden/upload", status_code=201)
def upload_golden(
    service: Served,
    caller: Engineer,
    product: str,
    file: Annotated[UploadFile, File(description="An image whose decision is known")],
    anomalous: bool,
    note: Annotated[str, Query(max_length=200)] = "",
) -> list[dict[str, Any]]:
    """Upload a golden sample."""
    service.catalogue.product(product)
    name, data = clean_name(file.filename), file.file.read()
    pixels_of(data, name, service.settings.max_pixels)
    decode(data, name)
    return _add_golden(service, caller.name, product, service.images.add(data, pinned=True), anomalous, note or name)


@router.delete("/v1/models/{product}/golden/{number}")
def remove_golden(service: Served, caller: Engineer, product: str, number: int) -> list[dict[str, Any]]:
    """Take a golden sample away."""
    service.catalogue.product(product)
    service.catalogue.remove_golden(product, _number(number))
    service.audit.add(caller.name, "remove golden sample", product=product, number=number)
    return service.catalogue.golden(product)


@router.get("/v1/models/{product}/golden/{number}/thumbnail", response_class=Response)
def golden_image(service: Served, caller: Operator, product: str, number: int) -> Response:
    """A small JPEG of a golden sample."""
    for each in service.catalogue.golden(product):
        if each["id"] == number:
            small = thumbnail(decode(service.images.read(each["image"]), each["note"]))
            return Response(small, media_type="image/jpeg")
    raise NotFoundError(f"{product} has no golden sample {number}")


@router.post("/v1/models/{product}/golden/judge")
def judge_golden(service: Served, caller: Operator, product: str, version: Number) -> list[dict[str, Any]]:
    """What a version says of the golden samples."""
    service.catalogue.version(product, version)
    return [each.to_json() for each in service.activation.judge(product, version)]


def _add_golden(
    service: Service, by: str, product: str, digest: str, anomalous: bool, note: str
) -> list[dict[str, Any]]:
    service.images.pin(digest)
    service.catalogue.add_golden(product, digest, anomalous, note)
    service.audit.add(by, "golden sample", product=product, image=digest, anomalous=anomalous)
    return service.catalogue.golden(product)


def _number(number: int) -> int:
    if not 0 < number < 2**31:
        raise NotFoundError(f"there is no number {number}")
    return number
