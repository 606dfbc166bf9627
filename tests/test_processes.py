"""Several processes train as one: same losses, gradients and weights, whatever the shares of a batch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cdo_ad.method.loss import collaborative_loss
from cdo_ad.training.loop import split_batches
from cdo_ad.training.processes import GlobalBatchNorm, globalize

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    import numpy as np, torch
    from pathlib import Path
    from cdo_ad.config import Config
    from cdo_ad.method.model import AnomalyModel
    from cdo_ad.spec import ModelSpec
    from cdo_ad.training.checkpoint import Work
    from cdo_ad.training.loop import ApprenticeTraining
    from cdo_ad.training.processes import start_processes

    torch.set_num_threads(1)
    out, count, epochs, victim = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

    class Store:
        cached, size = True, (32, 32)
        def __len__(self): return count
        def __getitem__(self, i):
            return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 255

    config = Config(backbone="resnet18", weights="none", image_height=32, image_width=32, epochs=epochs, batch_size=6,
                    optimizer="adamw", lr=1e-3, seed=5)
    fabric = start_processes("cpu", 1, "32-true")
    torch.manual_seed(0)
    model = AnomalyModel(ModelSpec.from_config(config)).double()  # what is compared is the maths, not rounding
    work = Work(out, config, "data", "resume" if "resume" in sys.argv else "discard", fabric.is_global_zero)
    training = ApprenticeTraining(fabric, model, Store(), config, work)
    losses, gradients = [], []
    for epoch in range(training.first, epochs):
        for loss, done in training.epoch(epoch):
            losses.append(loss)
            gradients.append(torch.cat([p.grad.flatten() for p in model.apprentice.parameters()])[::997].clone())
            if str(fabric.global_rank) == victim and len(losses) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        if fabric.is_global_zero:
            work.save(model.apprentice.state_dict(), training.optimizer.state_dict(), epoch + 1)
        fabric.barrier()
    if fabric.is_global_zero:
        weights = torch.cat([v.flatten().double() for v in model.apprentice.state_dict().values()])
        found = {"losses": losses, "gradients": torch.stack(gradients), "weights": weights}
        np.savez(out.with_suffix(".npz"), world=fabric.world_size, **found)
    """
)


def launch(folder: Path, processes: int, count: int = 32, epochs: int = 4, victim: str = "none", *more: str):
    script = folder / "training.py"
    script.write_text(SCRIPT)
    start = [sys.executable]
    if processes > 1:  # torchrun: `accelerate launch --cpu --num_processes 2` would silently run one
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*start, str(script), str(folder / "out"), str(count), str(epochs), victim, *more]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def numbers(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "out.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What a training of one process gives."""
    folder = tmp_path_factory.mktemp("alone")
    done = launch(folder, 1)
    assert done.returncode == 0, done.stderr
    return numbers(folder)


@pytest.mark.slow
def test_three_processes_follow_one(alone: dict[str, np.ndarray], tmp_path: Path) -> None:
    """20 and more steps; 32 images in batches of 6 leave 2 in the last, so one of three processes has none."""
    done = launch(tmp_path, 3)
    assert done.returncode == 0, done.stderr
    a, b = alone, numbers(tmp_path)
    assert int(b["world"]) == 3 and len(a["losses"]) == 24
    for name in ("losses", "gradients", "weights"):
        assert np.abs(b[name] - a[name]).max() <= 1e-5 * np.abs(a[name]).max(), name


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_resumes_in_one(alone: dict[str, np.ndarray], tmp_path: Path) -> None:
    parts = tmp_path
    assert launch(parts, 2, 32, 2).returncode == 0  # half of the epochs
    state = torch.load(parts / ".out.training" / "checkpoint.pt", weights_only=True)
    state["identity"]["settings"] = state["identity"]["settings"].replace('"epochs": 2', '"epochs": 4')
    torch.save(state, parts / ".out.training" / "checkpoint.pt")
    assert launch(parts, 1, 32, 4, "none", "resume").returncode == 0
    a, b = alone, numbers(parts)
    assert np.abs(b["weights"] - a["weights"]).max() <= 1e-5 * np.abs(a["weights"]).max()


@pytest.mark.slow
def test_a_dead_process_ends_the_training_with_a_message(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, victim="1")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "Signal 9" in done.stderr
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(("count", "batch", "world"), [(32, 6, 3), (7, 4, 2), (1, 4, 2), (12, 5, 4)])
def test_shares_cover_each_image_once(count: int, batch: int, world: int) -> None:
    shares = [split_batches(count, batch, 0, 0, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # as many steps in every process
    assert sorted(i for share in shares for step in share for i in step) == list(range(count))
    alone = split_batches(count, batch, 0, 0, 0, 1)
    for step, whole in enumerate(alone):
        assert sorted(i for share in shares for i in share[step]) == sorted(whole)


def test_a_global_norm_alone_is_a_batch_norm() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    shared = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    shared.load_state_dict(plain.state_dict())
    globalize(shared)
    assert isinstance(shared[1], GlobalBatchNorm) and shared.state_dict().keys() == plain.state_dict().keys()
    values = torch.randn(4, 3, 8, 8)
    assert torch.equal(shared(values), plain(values))


def test_parts_of_a_loss_add_up_to_it() -> None:
    maps = [torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    mask = torch.zeros(5, 16, 16, dtype=torch.bool)
    mask[1, 2:9, 3:12] = mask[4, :4] = True
    whole = collaborative_loss(maps, mask)
    recorded: list[list[torch.Tensor]] = []
    for part in (slice(0, 2), slice(2, 5), slice(5, 5)):  # what each process alone would hand in to the sums
        own: list[torch.Tensor] = []

        def note(values: torch.Tensor, own: list[torch.Tensor] = own) -> torch.Tensor:
            own.append(values)
            return values

        collaborative_loss([m[part] for m in maps], mask[part], oom=False, sum_over_processes=note)
        recorded.append(own)
    sums = [sum(parts) for parts in zip(*recorded, strict=True)]
    total = torch.zeros(())
    for part in (slice(0, 2), slice(2, 5), slice(5, 5)):
        turn = iter(sums)
        total += collaborative_loss(
            [m[part] for m in maps], mask[part], oom=False, sum_over_processes=lambda _, turn=turn: next(turn)
        )
    torch.testing.assert_close(total, collaborative_loss(maps, mask, oom=False))
    assert not torch.isclose(whole, total)  # overlap optimisation weighs otherwise
