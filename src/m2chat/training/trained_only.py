"""What every training module of ours shares: its checkpoints hold the trained tensors and say what they are."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning import LightningModule

from m2chat.models.checkpoints import (
    HEADER,
    VERSION,
    Header,
    check_header,
    check_names,
    check_shapes,
    plain_name,
    trainable_names,
)
from m2chat.models.fingerprints import Fingerprints


class TrainedOnlyModule(LightningModule):
    """A LightningModule whose checkpoints hold trained tensors only.

    Frozen networks come from their own files, which a fingerprint identifies. Works alike in one process, under DDP
    and under `M2ChatFSDPStrategy`.
    """

    stage: ClassVar[str]
    """Name of the training stage, which its checkpoints carry."""

    def backbones(self) -> Fingerprints:
        """Identifies the frozen backbones; equal fingerprints mean equal weights."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # frozen tensors are missing from every checkpoint; on_load_checkpoint checks names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trained tensors and adds the header."""
        names = trainable_names(self)
        state = {plain_name(name): tensor for name, tensor in checkpoint["state_dict"].items()}
        checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name in names}
        backbones = self.backbones()
        checkpoint[HEADER] = Header(
            stage=self.stage, fingerprint=backbones.name, version=VERSION, fingerprints=backbones.components
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another stage, of other backbones, or with other tensors than are trained here.

        Raises:
            UserError: In those cases.
        """
        check_header(checkpoint, "the checkpoint", self.stage, self.backbones())
        if "state_dict" in checkpoint:  # `M2ChatFSDPStrategy` has checked and loaded it already
            check_names(checkpoint["state_dict"], trainable_names(self), "the checkpoint")
            parameters = {plain_name(name): parameter for name, parameter in self.named_parameters()}
            check_shapes(checkpoint["state_dict"], parameters, "the checkpoint")
            actual = {plain_name(name): name for name in self.state_dict()}
            checkpoint["state_dict"] = {actual[name]: tensor for name, tensor in checkpoint["state_dict"].items()}
