"""Stable Diffusion and SDXL without any training: the first rows of Table 1."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.integrity import verify_folder
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.fingerprints import drawing_fingerprint
from m2chat.models.weights.files import load_json, require_no_code
from m2chat.models.weights.script import PICKLE_ERRORS, reason_of
from m2chat.pipeline.drawing import noise_seed, to_pictures
from m2chat.pipeline.replier import Given
from m2chat.schema import KINDS, Reply, Segment
from m2chat.text import view_of
from m2chat.training.config import EvalConfig, required
from m2chat.training.predicting import PredictingModule, Replies


class DiffusersModule(PredictingModule):
    """Draws the reference captions with a diffusers pipeline; nothing is trained.

    A picture's noise is the one that M²Chat draws it from, so that rows can be compared picture by picture.

    Args:
        backbone: `image_decoder` is the pipeline's folder; of the rest only the data need anything.
        evaluation: Steps, guidance and seed.
        negative: Negative condition of guidance: the pipeline's own choice for an empty prompt (``empty``), or a
            condition of ``zeros``, for a Stable Diffusion 1.5 that was trained so, as the micro one was.
        seed: Seed of the run; not used.
    """

    stage = "pipeline"

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        evaluation: EvalConfig | None = None,
        negative: Literal["empty", "zeros"] = "empty",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = required(backbone, "backbone", "configs/backbone/micro.yaml")
        self.evaluation = evaluation or EvalConfig()
        if self.backbone.decoder != DecoderConfig():
            raise UserError(
                "backbone.decoder has no effect here: DiffusersModule draws as the pipeline's folder states"
            )
        self.negative, self.seed = negative, seed
        self._pipeline: Any = None

    def fingerprint(self) -> str:
        """Identifies the networks: those of the pipeline alone."""
        return drawing_fingerprint(self.backbone)

    def configure_model(self) -> None:
        """Loads the pipeline.

        Raises:
            UserError: If the folder is no pipeline, is damaged, or brings code.
        """
        if self._pipeline is not None:
            return
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it warns of a missing safety checker, which these pictures do not need
        folder = Path(self.backbone.image_decoder)
        _require_plain(folder)
        verify_folder(folder)
        with warnings.catch_warnings():
            # `steps_offset`: it has no meaning under the scheduler's spacing `trailing`.
            warnings.simplefilter("ignore", FutureWarning)
            try:
                self._pipeline = DiffusionPipeline.from_pretrained(
                    folder, torch_dtype=torch.float32, local_files_only=True
                )
            except PICKLE_ERRORS as error:  # the libraries read weights and nothing else, and so refuse hidden code
                raise UserError(
                    f"backbone.image_decoder={str(folder)!r} could not be loaded: {reason_of(error)}"
                ) from error
        self._pipeline.set_progress_bar_config(disable=True)

    def configure_optimizers(self) -> None:
        """Refuses to train.

        Raises:
            UserError: Always.
        """
        raise UserError("DiffusersModule trains nothing: use it with `lightning test`")

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Never called: `configure_optimizers` refuses before."""

    def protocol(self) -> dict[str, Any]:
        """How the evaluation was done."""
        return {
            "stage": self.stage,
            "weights": self.backbone.image_decoder,
            "trainable_parameters": 0,
            "fingerprint": self.fingerprint(),
            "pipeline": type(self._pipeline).__name__,
            "negative": self.negative,
            "tasks": dict.fromkeys(KINDS, "zero-shot"),
            **self.evaluation_settings(),
            "given": "caption",
        }

    def generate(self, batch: Batch, given: Given) -> Replies:
        """A picture for each caption of the reference replies, and no answers."""
        views = [view_of(sample, turn) for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        captions = [[segment.caption for segment in view.reply if segment.caption is not None] for view in views]
        names = [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        places = [(i, k) for i, texts in enumerate(captions) for k in range(len(texts))]
        pixels = self._draw(
            [captions[i][k] for i, k in places],
            [noise_seed(self.evaluation.seed, f"{names[i]}/{k}") for i, k in places],
        )
        drawn = dict(zip(places, to_pictures(pixels), strict=True)) if places else {}
        replies = [
            Reply(tuple(Segment("", text) for text in texts), tuple(drawn[i, k] for k in range(len(texts))))
            for i, texts in enumerate(captions)
        ]
        return replies, [{} for _ in replies]

    @torch.no_grad()
    def _draw(self, prompts: list[str], seeds: list[int]) -> Tensor:
        """Pictures in [-1, 1], (n, 3, H, W)."""
        if not prompts:
            return torch.zeros(0)
        pipe = self._pipeline.to(self.device)
        config = pipe.unet.config
        shape = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        steps, guidance = self.evaluation.drawing(self.backbone.decoder)
        options: dict[str, Any] = {}
        if self.negative == "zeros" and not hasattr(pipe, "text_encoder_2"):
            length, width = pipe.tokenizer.model_max_length, int(config.cross_attention_dim)
            options["negative_prompt_embeds"] = torch.zeros(len(prompts), length, width, device=self.device)
        pixels: Tensor = pipe(
            prompt=prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise.to(self.device),
            output_type="pt",
            **options,
        ).images
        return pixels * 2 - 1


def _require_plain(folder: Path) -> None:
    """Refuses a folder from which diffusers would import anything but diffusers' and transformers' classes.

    Raises:
        UserError: That names the entry or the file.
    """
    index = load_json(folder / "model_index.json", "backbone.image_decoder")
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    strange = [
        name for name, entry in parts.items() if not entry or entry[0] not in (None, "diffusers", "transformers")
    ]
    if strange or not isinstance(index.get("_class_name"), str):
        raise UserError(
            f"backbone.image_decoder={str(folder)!r} brings code of its own ({', '.join(strange) or '_class_name'}), "
            "which is not executed: use a folder whose parts are of diffusers and transformers"
        )
    require_no_code(folder, "backbone.image_decoder")
