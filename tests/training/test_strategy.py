from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from m2chat.checksums import SUMS, read_sums
from m2chat.errors import UserError
from m2chat.models.checkpoints import read_checkpoint
from m2chat.models.fingerprints import Fingerprints
from m2chat.training.consolidate import consolidate
from m2chat.training.strategy import M2ChatFSDPStrategy, require_safe_reader
from m2chat.training.trained_only import TrainedOnlyModule
from toys import named_backbones

TRAINED = {"net.1.weight", "net.1.bias"}


class Net(nn.Sequential):
    """A frozen layer, then a trained one."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Linear(8, 3))
        self[0].requires_grad_(False)


class Toy(TrainedOnlyModule):
    stage: ClassVar[str] = "toy"

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.losses: list[float] = []
        self.weights: dict[str, Tensor] = {}

    def backbones(self) -> Fingerprints:
        return named_backbones()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        # The data follow the step, so that a resumed run sees what it would have seen.
        data = torch.randn(4, 4, generator=torch.Generator().manual_seed(self.trainer.global_step))
        share = data.chunk(self.trainer.world_size)[self.trainer.global_rank]
        loss: Tensor = self.net(share).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(range(100), batch_size=None)

    def on_train_end(self) -> None:
        for name, parameter in self.named_parameters():
            full = getattr(parameter, "full_tensor", None)
            self.weights[name] = (full() if full is not None else parameter).detach().clone()


def train(root: Path, strategy: Strategy, steps: int, ckpt_path: Path | None = None, save: Path | None = None) -> Toy:
    """Trains for some steps; the same weights and data whatever the number of processes."""
    seed_everything(0, verbose=False)
    module = Toy()
    trainer = Trainer(
        default_root_dir=root, accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", "1")), strategy=strategy,
        max_steps=steps, gradient_clip_val=0.05, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return module


def alone(root: Path, steps: int, **kwargs: Any) -> Toy:
    return train(root, SingleDeviceStrategy("cpu"), steps, **kwargs)


Sharded = Callable[..., tuple[list[float], dict[str, Tensor]]]


@pytest.fixture
def sharded(tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any]) -> Sharded:
    """A function like `alone`, on two ranks; its first argument asks for checkpoints in shares."""

    def run(folder: bool, steps: int, **kwargs: Any) -> tuple[list[float], dict[str, Tensor]]:
        def task() -> tuple[list[float], dict[str, Tensor]]:
            module = train(tmp_path, M2ChatFSDPStrategy(save_distributed_checkpoint=folder), steps, **kwargs)
            return module.losses, module.weights

        losses, weights = on_two_ranks(task)
        return losses, weights

    return run


@pytest.mark.parametrize("folder", [False, True], ids=["one_file", "shares"])
def test_two_ranks_train_save_and_resume_like_one_process(tmp_path: Path, sharded: Sharded, folder: bool) -> None:
    whole, reference = alone(tmp_path, 6), Net().state_dict()
    path = tmp_path / "half.ckpt"
    _, first = sharded(folder, 3, save=path)
    assert torch.allclose(first["net.1.weight"], alone(tmp_path, 3).weights["net.1.weight"], atol=1e-6)
    assert path.is_dir() == folder
    if folder:
        names = {file.name for file in path.iterdir()}
        assert read_sums(path / SUMS).keys() == names - {SUMS} and {".metadata", "meta.pt"} < names
    _, weights = sharded(folder, 6, ckpt_path=path)
    assert weights.keys() == whole.weights.keys() and len(reference) == len(weights)
    for name, tensor in whole.weights.items():
        assert torch.allclose(weights[name], tensor, atol=1e-6), name


@pytest.mark.slow
def test_two_four_and_one_process_go_on_one_behind_the_other(tmp_path: Path, on_ranks: Callable[..., Any]) -> None:
    whole, paths = alone(tmp_path, 6), [tmp_path / f"{number}.ckpt" for number in range(3)]

    def go_on(steps: int, ckpt_path: Path | None, save: Path) -> None:
        strategy = M2ChatFSDPStrategy(save_distributed_checkpoint=True)
        train(tmp_path, strategy, steps, ckpt_path=ckpt_path, save=save)

    on_ranks(lambda: go_on(2, None, paths[0]), 2)
    on_ranks(lambda: go_on(4, paths[0], paths[1]), 4)
    consolidate(paths[1], paths[2])
    resumed = alone(tmp_path, 6, ckpt_path=paths[2])
    for name, tensor in whole.weights.items():
        assert torch.allclose(resumed.weights[name], tensor, atol=1e-6), name


def test_one_file_moves_between_one_and_two_processes(tmp_path: Path, sharded: Sharded) -> None:
    whole = alone(tmp_path, 6)
    path = tmp_path / "half.ckpt"
    sharded(False, 3, save=path)
    payload = read_checkpoint(path)
    assert set(payload["state_dict"]) == TRAINED
    prints = {"language_model": "abc"}
    assert payload["m2chat"] == {"stage": "toy", "fingerprint": "abc", "version": 1, "fingerprints": prints}
    resumed = alone(tmp_path, 6, ckpt_path=path)
    for name, tensor in whole.weights.items():
        assert torch.allclose(resumed.weights[name], tensor, atol=1e-6), name
    alone(tmp_path, 3, save=path)
    _, weights = sharded(False, 6, ckpt_path=path)
    assert torch.allclose(weights["net.1.weight"], whole.weights["net.1.weight"], atol=1e-6)


def test_a_checkpoint_with_other_tensors_is_refused_on_both_ranks(
    tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any]
) -> None:
    path = tmp_path / "half.ckpt"
    alone(tmp_path, 3, save=path)
    payload = torch.load(path, weights_only=True)
    del payload["state_dict"]["net.1.bias"]
    torch.save(payload, path)
    message = on_two_ranks(lambda: refusal(tmp_path, path))
    assert "1 missing (net.1.bias)" in message


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__1_0.distcp", SUMS])
def test_a_damaged_share_is_refused_on_both_ranks(
    tmp_path: Path, sharded: Sharded, on_two_ranks: Callable[[Callable[[], object]], Any], name: str
) -> None:
    path = tmp_path / "half.ckpt"
    sharded(True, 2, save=path)
    with pytest.raises(
        UserError, match=r"is a folder, and SingleDeviceStrategy does not read those safely.*consolidate"
    ):
        require_safe_reader(SingleDeviceStrategy("cpu"), path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    assert name in on_two_ranks(lambda: refusal(tmp_path, path))


def refusal(root: Path, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        train(root, M2ChatFSDPStrategy(), 6, ckpt_path=path)
    return str(caught.value)


class Plain(Toy):
    """Plain gradient descent, which shows the size of a gradient as AdamW does not; new data in every batch."""

    batches = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        data = torch.randn(4, 4, generator=torch.Generator().manual_seed(self.batches))
        self.batches += 1
        loss: Tensor = self.net(data.chunk(self.trainer.world_size)[self.trainer.global_rank]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1.0)


def descend(root: Path, strategy: Strategy, clip: float | None, accumulate: int) -> dict[str, Tensor]:
    seed_everything(0, verbose=False)
    module = Plain()
    Trainer(
        default_root_dir=root, accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", "1")), strategy=strategy,
        max_steps=3, gradient_clip_val=clip, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module)  # fmt: skip
    return module.weights


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("clip", "accumulate"), [(None, 1), (0.05, 1), (None, 2), (0.05, 2)])
def test_clipping_and_accumulation_agree(
    tmp_path: Path, on_ranks: Callable[..., Any], ranks: int, clip: float | None, accumulate: int
) -> None:
    found = on_ranks(lambda: descend(tmp_path, M2ChatFSDPStrategy(), clip, accumulate), ranks)
    alone = descend(tmp_path, SingleDeviceStrategy("cpu"), clip, accumulate)
    for name, tensor in alone.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    if clip is not None:  # it does something
        free = descend(tmp_path, SingleDeviceStrategy("cpu"), None, accumulate)
        assert not torch.allclose(free["net.1.weight"], alone["net.1.weight"], atol=1e-3)


def test_shares_that_cannot_be_written_leave_the_former_ones(
    tmp_path: Path, sharded: Sharded, on_two_ranks: Callable[[Callable[[], object]], Any]
) -> None:
    path = tmp_path / "last.ckpt"
    sharded(True, 2, save=path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def fails() -> str:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
            patch.setattr(os, "fsync", full)
            train(tmp_path, M2ChatFSDPStrategy(save_distributed_checkpoint=True), 3, save=path)
        return str(caught.value)

    message = on_two_ranks(fails)
    assert "last.ckpt: No space left" in message and "are free" in message and "untouched" in message
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "result.pt"]


def full(*_: Any) -> None:
    """A write on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")
