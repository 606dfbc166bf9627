"""The whole job on drawn products, as `cdo-ad demo` does it: what is written, and that the default detects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("torch", reason="the extra `train` is not installed")

from cdo_ad.cli.main import app
from cdo_ad.demo.products import DEFECTS, PRODUCTS
from cdo_ad.evaluation.results import Results, read_results
from cdo_ad.reporting.tables import table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # three trainings; minutes on a busy machine


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the quick demo prints, and its folder."""
    out = tmp_path_factory.mktemp("demo")
    done = CliRunner().invoke(app, ["demo", "--quick", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, out


@pytest.fixture(scope="module")
def results(demo: tuple[str, Path]) -> dict[str, Results]:
    return {product: read_results(demo[1] / "runs" / product) for product in PRODUCTS}


def test_what_is_printed_is_there(demo: tuple[str, Path], results: dict[str, Results]) -> None:
    lines = demo[0].splitlines()
    for product in PRODUCTS:
        assert any(line.startswith(f"{product}: threshold ") for line in lines)
        auroc = results[product].metrics.image.auroc
        assert any(line.startswith("all") and f"{auroc:5.3f}" in line for line in lines)
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("examples:", "overlays:", "run:"))]
    assert len(named) == 3 * len(PRODUCTS) and all(Path(name).exists() for name in named)


def test_each_type_has_an_example_and_each_image_an_overlay(demo: tuple[str, Path]) -> None:
    for product in PRODUCTS:
        rows = 1 + len(DEFECTS[product])
        with Image.open(demo[1] / f"{product}.png") as sheet:
            assert sheet.size == (3 * 256 + 8, rows * 256 + (rows - 1) * 4)
            truths = [np.asarray(sheet)[row * 260 : row * 260 + 256, -256:] for row in range(rows)]
        assert sum(not truth.any() for truth in truths) == 1  # that of the good image
        assert len(list((demo[1] / "overlays" / product).rglob("*_overlay.png"))) == 4 + len(DEFECTS[product])


def test_even_a_quick_training_detects(results: dict[str, Results]) -> None:
    # seen small, four good images and six defects: a method that ranks by chance has .5 and rarely .75 for all three
    image = {product: found.metrics.image.auroc for product, found in results.items()}
    pixel = {product: found.metrics.pixel.auroc for product, found in results.items()}
    assert min(image.values()) >= 0.6 and np.mean(list(image.values())) >= 0.75, image
    assert min(pixel.values()) >= 0.7, pixel


def test_the_runs_make_a_table(demo: tuple[str, Path]) -> None:
    found = table([demo[1] / "runs" / product for product in PRODUCTS])
    assert [row.category for row in found.rows] == [*PRODUCTS, f"mean of {len(PRODUCTS)}"]
