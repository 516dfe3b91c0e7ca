"""Stage 0, before M³FT: a language model learns to describe pictures through an adapter of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.build import build_reading
from m2chat.models.config import NEW, BackboneConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.reading import ReadingModel
from m2chat.models.trainable import adapter_names
from m2chat.models.weights.new_adapter import save_adapter
from m2chat.pipeline.describer import write_texts
from m2chat.pipeline.replier import Given
from m2chat.schema import Reply, Segment
from m2chat.text import view_of
from m2chat.training.base_module import TrainingModule
from m2chat.training.config import EvalConfig, OptimConfig
from m2chat.training.global_batch import TextMean, global_text_loss
from m2chat.training.optim import language_parts
from m2chat.training.predicting import Replies


class DescribeModule(TrainingModule):
    """Trains LLaMA-Adapter V2's tensors to describe pictures, and writes them into an adapter file at its end.

    The language model is frozen: what is trained are its biases and norms, the adapter's gates and prompts, and the
    encoder of the visual query. The image decoder takes no part.

    Args:
        backbone: Paths of the pretrained networks; required. Its `adapter` is ``new``, or a file to go on with.
        optim: Optimiser and schedule. `lr_language` defaults to `lr`, which nothing else takes here; `lr_visual` and
            `lr_gates` to `lr_language`.
        evaluation: Settings of generation in validation and test.
        text_mean: Whether in the loss each token counts the same (``tokens``) or each caption (``replies``).
        adapter_file: File that the adapter is written to, ``.pth`` or ``.safetensors``; None for ``adapter.pth`` in
            the folder of the run.
        seed: Seed of the run.
        checkpoint_root: Folder in which evaluation looks for checkpoints.
        shard_frozen: Under FSDP, whether the frozen networks are sharded too.
        gradient_checkpointing: Whether the language model computes its activations again in the backward pass instead
            of keeping them: less memory, a third more work.
        read_parts: Number of parts of similar length into which the language model divides a batch, to compute less
            padding.
    """

    model: ReadingModel
    stage = "describe"
    init_stage = "describe"

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        optim: OptimConfig | None = None,
        evaluation: EvalConfig | None = None,
        text_mean: TextMean = "tokens",
        adapter_file: str | None = None,
        seed: int = 0,
        checkpoint_root: str = "lightning_logs",
        shard_frozen: bool = True,
        gradient_checkpointing: bool = False,
        read_parts: int = 1,
    ) -> None:
        super().__init__(
            backbone=backbone,
            optim=optim,
            evaluation=evaluation,
            seed=seed,
            checkpoint_root=checkpoint_root,
            shard_frozen=shard_frozen,
            gradient_checkpointing=gradient_checkpointing,
            read_parts=read_parts,
        )
        if adapter_file is not None and Path(adapter_file).suffix not in (".pth", ".safetensors"):
            raise UserError(f"adapter_file={adapter_file!r}: let the name end in .pth or .safetensors")
        self.text_mean, self.adapter_file = text_mean, adapter_file
        self._backbones = Fingerprints(self.backbone, draws=False)

    def build(self) -> ReadingModel:
        """The pretrained networks, without the image decoder."""
        return build_reading(self.backbone, settled=not self.is_sharded)

    def names_of(self, stage: str) -> set[str]:
        """Names of the model's parameters that are trained: exactly those of an adapter file."""
        new = self.backbone.new_adapter if self.backbone.adapter == NEW else None
        return adapter_names(self.model, biases=new is None or new.biases)

    def trained_parts(self) -> dict[str, tuple[nn.Module, float]]:
        """Parts that may be trained: name in the model to module and peak learning rate."""
        language, visual = self.optim.language_rates()
        llama = language_parts(self.model.llama, self.optim, language)
        return {**llama, "visual_query": (self.model.visual_query, visual)}

    # Training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the captions.

        Raises:
            UserError: If a sample's reply draws a picture: this stage only writes.
        """
        if drawn := batch.located().drawn:
            first = batch.samples[drawn[0]].id
            raise UserError(
                f"stage 0 learns to describe pictures, but the reply of sample {first!r} draws one: set `describe: "
                "true` of its source in data.train, or leave the source out"
            )
        logits, labels = self.model(batch)
        return {"loss": global_text_loss(batch, logits, labels, self.text_mean)}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step."""
        losses = self.losses(batch)
        self.log_losses(batch, **losses)
        return {"loss": losses["loss"]}

    def on_train_end(self) -> None:
        """Writes the adapter; under FSDP every process takes part."""
        tensors = {name: _whole(p) for name, p in self.model.named_parameters() if p.requires_grad}
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # which the processes agree on
        if self.trainer.is_global_zero:
            path = Path(self.adapter_file) if self.adapter_file else folder / "adapter.pth"
            save_adapter(path, tensors, self.backbone)
            rank_zero_info(f"Adapter: {path}. Set model.init_args.backbone.adapter to it for the stages of M³FT")

    # Evaluation

    def replier(self) -> Any:
        """There is none: descriptions have no pictures to draw."""
        raise NotImplementedError

    def generate(self, batch: Batch, given: Given) -> Replies:
        """Descriptions of the context pictures of a batch; `given` has no meaning here."""
        layout, limit = self.text_settings()[0], self.evaluation.max_text_tokens
        views = [view_of(sample, turn) for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        prompts = [layout.prompt(view.request, layout.max_tokens - limit)[0] for view in views]
        texts = write_texts(self.model, prompts, batch.context_pixels, layout, limit)
        return [Reply((Segment(text),), (None,)) for text in texts], [{} for _ in texts]


def _whole(parameter: Tensor) -> Tensor:
    """A parameter on the CPU, put together if it is sharded."""
    value: Any = parameter.detach()
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.cpu()
