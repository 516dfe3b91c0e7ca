"""A module and data of next to nothing, with which the `lightning` command runs in a moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor, nn

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.m2chat import M2ChatModel
from m2chat.training.trained_only import TrainedOnlyModule

TOY_CONFIG: dict[str, Any] = {
    "model": {"class_path": "ToyStage", "init_args": {"backbone": {"image_decoder": "tiny"}}},
    "trainer": {
        "accelerator": "cpu", "max_steps": 3, "log_every_n_steps": 1, "enable_progress_bar": False,
        "enable_model_summary": False, "callbacks": [{"class_path": "Throughput", "init_args": {"every": 1}}],
    },
}  # fmt: skip


def named_backbones(name: str = "abc") -> Fingerprints:
    """Fingerprints of networks that are nowhere."""
    prints = Fingerprints(BackboneConfig("", "", "", "", 1))
    prints.name = prints.legacy = name
    prints.components = {"language_model": name}
    return prints


@dataclass
class ToyBackbone:
    language_model: str = "llama"
    vision_encoder: str = "clip"
    image_decoder: str = "sdxl"
    num_image_tokens: int = 4


class ToyStage(TrainedOnlyModule):
    """One trained and one frozen layer.

    Args:
        backbone: As in the real modules.
        phi: A number.
        seed: Linked to that of the run.
    """

    stage: ClassVar[str] = "first"

    def __init__(self, backbone: ToyBackbone, phi: float = 1.0, seed: int = 7) -> None:
        super().__init__()
        if backbone.language_model == "missing":
            raise UserError("there is no folder missing")
        self.phi, self.seed = phi, seed
        self.save_hyperparameters({"backbone": asdict(backbone), "phi": phi})
        self.trained, self.frozen = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)

    def backbones(self) -> Fingerprints:
        return named_backbones()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.trained(batch) + self.frozen(batch)).square().mean() * self.phi
        return loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/weight", self.trained.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.trained.parameters(), lr=0.1)


class ToySecondStage(ToyStage):
    stage: ClassVar[str] = "second"


class ToyData(LightningDataModule):
    """Constant data that note what was linked to them."""

    def __init__(
        self,
        language_model: str,
        vision_encoder: str,
        image_decoder: str,
        num_image_tokens: int,
        batch_size: int = 2,
        shards: str = "some",
        seed: int = 7,
    ) -> None:
        super().__init__()
        if shards == "empty":
            raise UserError("data.shards: the folder empty holds no shards")
        self.linked = (language_model, vision_encoder, image_decoder, num_image_tokens)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=self.batch_size)

    def test_dataloader(self) -> Any:
        return self.train_dataloader()


def picture(model: M2ChatModel, batch: Batch) -> Tensor:
    """What no way of keeping weights must spoil: the condition and the picture drawn from it."""
    with torch.no_grad():
        states, f_img, _ = model.read(batch.input_ids, batch.context_pixels)
        condition = model.condition(batch, states, f_img)
        return model.decoder.sample(condition.h_align, condition.h_palign, batch.time_ids, [1, 2], steps=2)
