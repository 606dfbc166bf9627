from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from cdo_ad.config import Config
from cdo_ad.errors import ConfigError
from cdo_ad.method.backbone import PACKAGED, create_backbone
from cdo_ad.method.discrepancy import anomaly_map, discrepancies, discrepancies_plain, image_score
from cdo_ad.method.loss import collaborative_loss
from cdo_ad.method.model import AnomalyModel
from cdo_ad.method.preprocess import blur_matrix, corners_matrix, halfpixel_matrix, resize
from cdo_ad.method.white_noise import foreground, image_seed, white_noise
from cdo_ad.spec import ModelSpec

GOLDEN = Path(__file__).parent / "golden" / "seed_reference.npz"
FORMS = [discrepancies, discrepancies_plain]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).detach().abs().max() / want.detach().abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("oom", "gamma"), [(False, 2), (True, 0.5), (True, 1), (True, 2), (True, 3)])
def test_loss_and_gradients_equal_the_reference(golden, form, oom, gamma) -> None:
    expert = [golden[f"expert_{k}"] for k in range(3)]
    apprentice = [golden[f"apprentice_{k}"].clone().requires_grad_() for k in range(3)]
    loss = collaborative_loss(form(expert, apprentice), golden["mask"][:, 0] > 0.5, gamma, oom)
    loss.backward()
    name = f"oom{int(oom)}_gamma{gamma}"
    assert loss.item() == pytest.approx(golden[f"loss_{name}"].item(), rel=1e-5)
    for k in range(3):
        assert relative(apprentice[k].grad.flatten()[::16], golden[f"grad_{name}_{k}"]) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_loss_without_synthetic_pixels_equals_the_reference(golden, form) -> None:
    maps = form([golden[f"expert_{k}"] for k in range(3)], [golden[f"apprentice_{k}"] for k in range(3)])
    nothing = torch.zeros_like(golden["mask"][:, 0], dtype=torch.bool)
    assert collaborative_loss(maps, nothing).item() == pytest.approx(5.3636, abs=5e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("prefix", "name", "size"),
    [("", "anomaly_map_64", (64, 64)), ("nonsquare_", "nonsquare_anomaly_map_48x80", (48, 80))],
)
def test_map_equals_the_reference(golden, form, prefix, name, size) -> None:
    expert = [golden[f"{prefix}expert_{k}"] for k in range(3)]
    apprentice = [golden[f"{prefix}apprentice_{k}"] for k in range(3)]
    assert relative(anomaly_map(form(expert, apprentice), size)[:, ::2, ::2], golden[name]) < 1e-5


@pytest.mark.parametrize(
    "shapes", [[(5, 9, 7), (6, 5, 4), (7, 3, 2)], [(4, 8, 8), (5, 4, 4), (6, 1, 1)], [(3, 6, 10)] * 3]
)
def test_both_forms_agree_in_value_and_gradient(shapes) -> None:
    torch.manual_seed(0)
    expert = [torch.randn(2, *s) for s in shapes]
    results = []
    for form in FORMS:
        torch.manual_seed(1)
        apprentice = [(e + 0.3 * torch.randn_like(e)).requires_grad_() for e in expert]
        maps = form(expert, apprentice)
        sum((m * m).sum() for m in maps).backward()
        results.append((maps, [a.grad for a in apprentice]))
    for fused, plain in zip(*results, strict=True):
        for got, want in zip(fused, plain, strict=True):
            assert relative(got, want) < 1e-5


def test_zero_vectors_have_finite_gradients_and_the_plain_forms_values() -> None:
    expert = [torch.randn(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)]
    apprentice = [torch.zeros(1, 4, 4, 4, requires_grad=True), torch.zeros(1, 4, 2, 2, requires_grad=True)]
    maps = discrepancies(expert, apprentice)
    for got, want in zip(maps, discrepancies_plain(expert, apprentice), strict=True):
        assert torch.allclose(got, want, atol=1e-6)
    sum(m.sum() for m in maps).backward()
    assert all(torch.isfinite(a.grad).all() for a in apprentice)


def test_a_training_may_follow_a_prediction_in_one_process() -> None:
    expert = [torch.randn(1, 4, 12, 12), torch.randn(1, 4, 6, 6)]
    with torch.inference_mode():
        anomaly_map(discrepancies(expert, [torch.randn_like(e) for e in expert]), (17, 19), 1.5)
    apprentice = [torch.randn_like(e).requires_grad_() for e in expert]
    anomaly_map(discrepancies(expert, apprentice), (17, 19), 1.5).sum().backward()
    assert all(torch.isfinite(a.grad).all() for a in apprentice)


def test_identical_networks_agree_everywhere() -> None:
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)]
    assert all(float(d.abs().max()) < 1e-5 for d in discrepancies(maps, maps))


@pytest.mark.parametrize(("target", "source"), [(8, 8), (16, 5), (7, 3), (1, 4), (5, 1)])
def test_matrices_equal_interpolate(target, source) -> None:
    x = torch.randn(1, 1, source, dtype=torch.float64)
    half = F.interpolate(x, size=target, mode="linear", align_corners=False)
    corners = F.interpolate(x, size=target, mode="linear", align_corners=True)
    assert torch.allclose(x @ halfpixel_matrix(target, source).T, half)
    assert torch.allclose(x @ corners_matrix(target, source).T, corners)


def antialias_matrix(target: int, source: int) -> torch.Tensor:
    """(target, source): a triangle filter as wide as the shrink factor, written down independently."""
    scale = source / target
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(source, dtype=torch.float64) + 0.5)[None, :] - centre[:, None]
    weight = (1 - distance.abs() / max(scale, 1.0)).clamp(min=0)
    return weight / weight.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("size", [(64, 64), (300, 41), (20, 500)])
def test_antialias_matrices_equal_the_resize(size) -> None:
    images = torch.rand(1, 3, *size) * 255
    by_matrix = antialias_matrix(64, size[0]).float() @ images @ antialias_matrix(64, size[1]).float().T
    assert float((by_matrix - resize(images, (64, 64))).abs().max()) < 1e-3


@pytest.mark.parametrize(("size", "sigma"), [(64, 4.0), (20, 4.0), (5, 4.0), (9, 0.0)])
def test_blur_equals_scipy(size, sigma) -> None:
    image = np.random.default_rng(0).random((size, size))
    matrix = blur_matrix(size, sigma).numpy()
    want = gaussian_filter(image, sigma) if sigma else image
    assert np.abs(matrix @ image @ matrix.T - want).max() < 1e-10


def test_image_score_is_the_maximum_or_the_mean_of_the_top() -> None:
    maps = torch.arange(200.0).view(1, 10, 20)
    assert image_score(maps).tolist() == [199.0]
    assert image_score(maps, 0.01).tolist() == [198.5]


# ---- MOM


def white_images(count: int = 6, height: int = 80, width: int = 120) -> torch.Tensor:
    return torch.full((count, 3, height, width), 255, dtype=torch.uint8)


def test_noise_depends_on_the_seed_of_its_image_alone() -> None:
    images = white_images()
    seeds = [image_seed(0, 0, i) for i in range(6)]
    all_at_once, masks = white_noise(images, seeds)
    alone, mask = white_noise(images[4:5], seeds[4:5])
    assert torch.equal(all_at_once[4], alone[0]) and torch.equal(masks[4], mask[0])
    other, _ = white_noise(images[4:5], [image_seed(0, 1, 4)])
    assert not torch.equal(other, alone)
    assert bool((images == 255).all())


def test_noise_is_where_the_mask_says_and_sizes_are_the_papers() -> None:
    images = white_images(400)
    noisy, masks = white_noise(images, list(range(400)))
    assert bool((noisy.permute(0, 2, 3, 1)[~masks] == 255).all())
    values = noisy.permute(0, 2, 3, 1)[masks]
    assert int(values.min()) == 0 and int(values.max()) == 254
    empty = (~masks.flatten(1).any(1)).float().mean().item()
    assert empty == pytest.approx(1 / 5, abs=0.06)  # none of 0..4 rectangles
    single = [m for m in masks if m.any() and (m.any(0).sum() * m.any(1).sum()) == m.sum()]
    heights = {int(m.any(1).sum()) for m in single}
    widths = {int(m.any(0).sum()) for m in single}
    assert min(heights) == 2 * (80 // 40) and min(widths) == 2 * (120 // 40)
    assert {2 * h for h in range(2, 8)} <= heights and {2 * w for w in range(3, 12)} <= widths


@pytest.mark.parametrize(("rule", "colour"), [("extremes", 5), ("extremes", 240), ("border", 5), ("border", 128)])
def test_centres_lie_on_the_part(rule, colour) -> None:
    images = torch.full((64, 3, 96, 96), colour, dtype=torch.uint8)
    images[..., 24:72, 24:72] = 60 if colour != 60 else 200
    part = foreground(images, rule)
    assert bool(part[:, 48, 48].all()) and not bool(part[:, 3, 3].any())
    _, masks = white_noise(images, list(range(64)), rule)
    reach = 96 // 10  # a rectangle reaches less than that beyond its centre
    near = F.max_pool2d(part[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
    assert not bool((masks & ~near).any())
    _, anywhere = white_noise(images, list(range(64)), "none")
    assert bool((anywhere & ~near).any())


def test_a_texture_that_fills_the_image_is_all_part() -> None:
    texture = torch.randint(90, 110, (2, 3, 64, 64), dtype=torch.uint8)
    assert bool(foreground(texture, "border").all())


def test_image_seeds_differ() -> None:
    seeds = {image_seed(s, e, i) for s in range(3) for e in range(20) for i in range(50)}
    assert len(seeds) == 3 * 20 * 50 and all(0 <= s < 2**63 for s in seeds)


# ---- backbones


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [64, 128, 256]),
        ("resnet34", [64, 128, 256]),
        ("resnet50", [256, 512, 1024]),
        ("wide_resnet50_2", [256, 512, 1024]),
        ("hrnet_w18", [18, 36, 72]),
        ("hrnet_w32", [32, 64, 128]),
        ("hrnet_w48", [48, 96, 192]),
        ("tf_efficientnet_lite0", [24, 40, 112]),
        ("convnext_atto", [40, 80, 160]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384]),
    ],
)
def test_backbones_give_three_levels(name, channels) -> None:
    size = (224, 224) if "swin" in name else (64, 96)
    maps = create_backbone(name, size).eval()(torch.zeros(1, 3, *size))
    assert [m.shape[1] for m in maps] == channels
    assert [tuple(m.shape[2:]) for m in maps] == [(size[0] // s, size[1] // s) for s in (4, 8, 16)]


@pytest.mark.parametrize(("name", "tensors"), [("tf_efficientnet_lite0", 296), ("tf_efficientnet_lite2", 386)])
def test_packaged_weights_equal_the_full_timm_model(name: str, tensors: int) -> None:
    module, kind, _ = PACKAGED[name]
    full = timm.create_model(name, pretrained=False)
    file = getattr(importlib.import_module(module), kind).get_model_file_path()
    packaged = torch.load(file, weights_only=True)
    assert len(packaged) == tensors
    full.load_state_dict(dict(zip(full.state_dict(), packaged.values(), strict=True)))
    full.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got = create_backbone(name, (64, 64), "auto").eval()(images)
        x = full.bn1(full.conv_stem(images))
        for level, stages in enumerate((slice(0, 2), slice(2, 3), slice(3, 5))):
            x = full.blocks[stages](x)
            assert torch.allclose(got[level], x, atol=1e-4)


@pytest.mark.parametrize(("name", "patch"), [("vit_small_patch14_dinov2", 14), ("vit_small_patch16_dinov3", 16)])
def test_a_plain_transformer_gives_an_early_a_middle_and_a_late_block(name: str, patch: int) -> None:
    size = (4 * patch, 3 * patch)
    backbone = create_backbone(name, size).eval()
    assert list(backbone.body.feature_info.out_indices) == [3, 7, 10]
    with torch.no_grad():
        assert [tuple(m.shape) for m in backbone(torch.zeros(1, 3, *size))] == [(1, 384, 4, 3)] * 3
    with pytest.raises(ConfigError, match=rf"patches of {patch} x {patch} pixels.* multiples"):
        create_backbone(name, (256, 250))


def test_a_transformers_positions_are_put_on_the_grid_of_the_input(tmp_path: Path) -> None:
    full = timm.create_model("vit_small_patch14_dinov2", pretrained=False)  # built for 518 x 518
    with torch.no_grad():
        ramp = torch.linspace(-1, 1, 37).view(37, 1, 1).expand(37, 37, 384)
        full.pos_embed.copy_(torch.cat([torch.full((1, 1, 384), 5.0), ramp.reshape(1, -1, 384)], dim=1))
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    body = create_backbone("vit_small_patch14_dinov2", (56, 42), str(tmp_path / "weights.pth")).body
    embedding = body.state_dict()["model.pos_embed"]
    assert tuple(embedding.shape) == (1, 1 + 4 * 3, 384)
    assert bool((embedding[0, 0] == 5).all())
    rows = embedding[0, 1:, 0].view(4, 3)
    assert bool((rows[1:] > rows[:-1]).all()) and torch.allclose(rows[:, 0], rows[:, 2], atol=1e-4)


@pytest.mark.parametrize(("name", "ending"), [("resnet18", ".pth"), ("hrnet_w18", ".safetensors")])
def test_weights_from_a_local_file(tmp_path, name, ending) -> None:
    from safetensors.torch import save_file

    model = timm.create_model(name, pretrained=False)
    file = tmp_path / f"weights{ending}"
    if ending == ".pth":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    backbone = create_backbone(name, (64, 64), str(file))
    assert torch.equal(backbone.body.state_dict()["conv1.weight"], model.state_dict()["conv1.weight"])


def test_wrong_weights_are_refused(tmp_path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet18").state_dict(), file)
    with pytest.raises(ConfigError, match=r"resnet50.*(missing|shape)"):
        create_backbone("resnet50", (64, 64), str(file))
    with pytest.raises(ConfigError, match="does not exist"):
        create_backbone("resnet18", (64, 64), str(tmp_path / "none.pth"))
    file.write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        create_backbone("resnet18", (64, 64), str(file))


def test_hub_weights_come_through_timm(monkeypatch) -> None:
    real = timm.create_model
    donor = real("resnet18", pretrained=False)
    monkeypatch.setattr(timm, "create_model", lambda n, pretrained=False, **k: donor if pretrained else real(n, **k))
    backbone = create_backbone("resnet18", (64, 64), "hub")
    assert torch.equal(backbone.body.state_dict()["conv1.weight"], donor.state_dict()["conv1.weight"])

    def closed(*_: object, pretrained: bool = False, **k: object) -> object:
        if pretrained:
            raise OSError("no route")
        return real("resnet18", **k)

    monkeypatch.setattr(timm, "create_model", closed)
    with pytest.raises(ConfigError, match="closed network"):
        create_backbone("resnet18", (64, 64), "hub")


@pytest.mark.parametrize(("name", "message"), [("resnet19", "no such model"), ("lenet", "no such model")])
def test_unknown_backbones_are_refused(name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone(name, (64, 64))


def test_the_expert_stays_in_eval_mode_and_the_apprentice_starts_elsewhere() -> None:
    config = Config(backbone="resnet18", weights="none", image_height=64, image_width=64)
    network = AnomalyModel(ModelSpec.from_config(config)).train()
    assert network.apprentice.training
    assert not any(m.training for m in network.expert.modules())
    assert not any(p.requires_grad for p in network.expert.parameters())
    maps, scores, _ = network.eval()(torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8))
    assert maps.shape == (2, 64, 64) and float(maps.detach().min()) > 0
    assert torch.equal(scores, maps.flatten(1).amax(1))
