"""M²Chat (Fig. 2): vision encoder, language model, M³Adapter and image decoder in one module.

Training computes everything in `forward`, because FSDP2 gathers sharded weights only there; the other methods serve
generation, on whole weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2chat.batch import Batch, FrozenFeatures
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m3adapter import Condition, M3Adapter
from m2chat.models.reading import ReadingModel
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder


@dataclass
class DiffusionNoise:
    """The random part of L_ddpm, drawn by the caller so that it can be repeated.

    Args:
        samples: Indices in the batch of the samples that are drawn, (n,).
        timesteps: (draws * n,): for these samples, then for the same ones again.
        noise: (draws * n, c, h, w).
        drop: Mask of the draws whose condition is replaced by zeros, (draws * n,) bool.
        draws: How often each sample is drawn.
    """

    samples: Tensor
    timesteps: Tensor
    noise: Tensor
    drop: Tensor
    draws: int = 1


@dataclass
class M2ChatOutput:
    """What the losses need.

    Args:
        condition: h_align, h_palign, gate and cosine.
        e_clip: Target of h_align, (B, Q, C).
        e_pclip: Target of h_palign, (B, P).
        prediction: Output of the UNet, (n, c, h, w); None where no noise was given.
        diffusion_target: Noise or velocity that the UNet should predict, (n, c, h, w); None with `prediction`.
        logits: At the scored positions only, (scored, V).
        logit_labels: The tokens that stand there, (scored,).
    """

    condition: Condition
    e_clip: Tensor
    e_pclip: Tensor | None
    prediction: Tensor | None
    diffusion_target: Tensor | None
    logits: Tensor | None = None
    logit_labels: Tensor | None = None


class M2ChatModel(ReadingModel):
    """The composed model; the builder knows the numbers.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        clip: Vision encoder, frozen.
        visual_query: Maker of the adapter's prompts.
        m3adapter: The connector.
        decoder: Image decoder, frozen.
    """

    def __init__(
        self,
        llama: Any,
        clip: ClipTokens,
        visual_query: VisualQueryEncoder,
        m3adapter: M3Adapter,
        decoder: ImageDecoder,
    ) -> None:
        super().__init__(llama, clip, visual_query)
        self.m3adapter = m3adapter
        self.decoder = decoder

    @property
    def read_layers(self) -> tuple[int, ...]:
        """Layers of the language model that the M³Adapter reads."""
        return tuple(self.m3adapter.config.layers)

    def condition(self, batch: Batch, states: Tensor, f_img: Tensor, use_image: bool = True) -> Condition:
        """The condition of the batch's pictures."""
        places = batch.located()
        return self.m3adapter(  # type: ignore[no-any-return]
            states, batch.answer_mask, batch.caption_mask, batch.image_mask, f_img, batch.has_context, use_image,
            (places.read, places.is_read),
        )  # fmt: skip

    def text_condition(self, features: FrozenFeatures, has_context: Tensor) -> Condition:
        """The condition of pictures from kept states, without image branch and gate: that of stage 1.

        Args:
            features: Features with their `mask`.
            has_context: Whether each sample has a context picture, (B,); none of them is looked at.
        """
        assert features.states is not None and features.mask is not None
        states = features.states.to(self.m3adapter.queries.dtype)  # a cache may hold them in half precision
        f_img = states.new_zeros(len(has_context), 1, self.clip.width)
        # Of caption and image tokens the M³Adapter takes the union; the gate, which needs each alone, is out.
        nothing = torch.zeros_like(features.mask)
        return self.m3adapter(states, nothing, features.mask, nothing, f_img, has_context, False)  # type: ignore[no-any-return]

    @torch.no_grad()
    def frozen_features(self, batch: Batch, with_latents: bool = True) -> FrozenFeatures:
        """Features of the frozen networks that stage 1 needs.

        Args:
            batch: Raw inputs without context pictures, so that the empty one is encoded once for all.
            with_latents: Whether the pictures are encoded too.
        """
        states, _, _ = self.read(batch.input_ids, batch.context_pixels[:1], batch.located())
        e_clip, e_pclip = self.decoder.encode_text(batch.caption_ids, batch.caption_ids_2)
        latents = self.decoder.encode_pixels(batch.target_pixels) if with_latents else None
        return FrozenFeatures(states, e_clip, e_pclip, latents)

    def forward(  # type: ignore[override]  # the stages of M³FT have noise as well
        self,
        batch: Batch,
        noise: DiffusionNoise | None,
        use_image: bool = True,
        with_text: bool = True,
        features: FrozenFeatures | None = None,
    ) -> M2ChatOutput:
        """One training pass.

        Args:
            batch: The samples.
            noise: Noise of the samples that are drawn; None for none: the UNet is not called then.
            use_image: Whether the image branch and the gate take part (stage 2).
            with_text: Whether the language model is trained and its logits are wanted (stage 2).
            features: Features of the frozen networks, for stage 1; None takes those of the batch, or computes them.
                Stage 2 takes those of the batch.
        """
        logits = labels = None
        if with_text:
            features = batch.features
            kept_tokens = None if features is None else features.f_img
            states, f_img, last = self.read(batch.input_ids, batch.context_pixels, batch.located(), kept_tokens)
            logits, labels = self.scored(batch, last)
            condition = self.condition(batch, states, f_img, use_image)
        else:
            features = features or batch.features or self.frozen_features(batch, with_latents=False)
            assert features.states is not None
            if features.mask is None:
                f_img = features.states.new_zeros(len(batch), 1, self.clip.width)  # no context picture is read
                condition = self.condition(batch, features.states, f_img, use_image)
            else:
                condition = self.text_condition(features, batch.has_context)
        if features is None or features.e_clip is None:
            e_clip, e_pclip = self.decoder.encode_text(batch.caption_ids, batch.caption_ids_2)
        else:
            e_clip, e_pclip = features.e_clip, features.e_pclip
        prediction = target = None
        if noise is not None:
            latents = None if features is None else features.latents
            prediction, target = self.denoise(batch, noise, condition, latents)
        return M2ChatOutput(condition, e_clip, e_pclip, prediction, target, logits, labels)

    def denoise(
        self, batch: Batch, noise: DiffusionNoise, condition: Condition, latents: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The UNet's prediction for noisy target pictures, and its target, both (n, c, h, w).

        Args:
            batch: The samples.
            noise: Noise of those that are drawn.
            condition: Condition of all samples.
            latents: Latents of all target pictures; None encodes those that are drawn.
        """
        if latents is None:
            latents = self.decoder.encode_pixels(batch.target_pixels[noise.samples])
        else:
            latents = latents[noise.samples]
        chosen = noise.samples.repeat(noise.draws)
        noisy, target = self.decoder.diffuse(latents.repeat(noise.draws, 1, 1, 1), noise.noise, noise.timesteps)
        keep = (~noise.drop).to(condition.h_align.dtype)[:, None]
        pooled = None if condition.h_palign is None else condition.h_palign[chosen] * keep
        prediction = self.decoder.predict(
            noisy, noise.timesteps, condition.h_align[chosen] * keep[..., None], pooled, batch.time_ids[chosen]
        )
        return prediction, target
