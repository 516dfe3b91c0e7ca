"""M²Chat (Fig. 2): vision encoder, language model, M³Adapter and image decoder in one module.

Training computes everything in `forward`, because FSDP2 gathers sharded weights only there; the other methods serve
generation, on whole weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m3adapter import Condition, M3Adapter
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.schema import Batch


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
class FrozenFeatures:
    """What the frozen networks say of a batch; may be computed once and kept.

    Args:
        states: States of the language model, as `M2ChatModel.read` returns them.
        e_clip: (B, Q, C).
        e_pclip: (B, P).
        latents: (n, c, h, w).
    """

    states: Tensor
    e_clip: Tensor
    e_pclip: Tensor | None
    latents: Tensor


@dataclass
class M2ChatOutput:
    """What the losses need.

    Args:
        condition: h_align, h_palign, gate and cosine.
        e_clip: Target of h_align, (B, Q, C).
        e_pclip: Target of h_palign, (B, P).
        prediction: Output of the UNet, (n, c, h, w).
        diffusion_target: Noise or velocity that the UNet should predict, (n, c, h, w).
        logits: At the scored positions only, (scored, V).
        logit_labels: The tokens that stand there, (scored,).
    """

    condition: Condition
    e_clip: Tensor
    e_pclip: Tensor | None
    prediction: Tensor
    diffusion_target: Tensor
    logits: Tensor | None = None
    logit_labels: Tensor | None = None


class M2ChatModel(nn.Module):
    """The composed model; the builder knows the numbers.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        clip: Vision encoder, frozen.
        visual_query: Maker of the adapter's prompts.
        m3adapter: The connector.
        decoder: Image decoder, frozen.

    Attributes:
        read_parts: Into how many parts of like length `read` divides a batch; more parts compute less padding.
    """

    read_parts: int = 1

    def __init__(
        self,
        llama: Any,
        clip: ClipTokens,
        visual_query: VisualQueryEncoder,
        m3adapter: M3Adapter,
        decoder: ImageDecoder,
    ) -> None:
        super().__init__()
        self.llama = llama
        self.clip = clip
        self.visual_query = visual_query
        self.m3adapter = m3adapter
        self.decoder = decoder

    def read(
        self, input_ids: Tensor, context_pixels: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The language model's states of whole sequences.

        Args:
            input_ids: Right-padded, (B, T).
            context_pixels: Normalised for CLIP, zeros where there is no picture, (B, 3, S, S); or a single picture
                that all sequences share, (1, 3, S, S).
            lengths: Real tokens of each sequence, (B,); given, `read_parts` counts, and states of padding are zero
                where no part computed them.

        Returns:
            States that the M³Adapter reads, (B, T, D), or (L, B, T, D) if it reads several layers; f_img
            (B or 1, I, W); and the states from which the next token is predicted, (B, T, D).
        """
        f_img = self.clip(context_pixels)
        visual_query = self.visual_query(f_img).expand(len(input_ids), -1, -1)
        if lengths is None or self.read_parts == 1:
            states, last = self._states(input_ids, visual_query)
            return states, f_img, last
        length = input_ids.shape[1]
        # As many parts in every process: under FSDP all must gather weights equally often.
        rows = lengths.argsort().tensor_split(min(self.read_parts, len(lengths)))
        read = [self._states(input_ids[part, : int(lengths[part].max())], visual_query[part]) for part in rows]
        back = torch.cat(rows).argsort()
        states, last = (
            torch.cat([F.pad(part, (0, 0, 0, length - part.shape[-2])) for part in parts], -3).index_select(-3, back)
            for parts in zip(*read, strict=True)
        )
        return states, f_img, last

    def _states(self, input_ids: Tensor, visual_query: Tensor) -> tuple[Tensor, Tensor]:
        """States that the M³Adapter reads, and those from which the next token is predicted."""
        # No mask: padding is on the right and attention is causal, so real tokens never see it.
        layers = self.m3adapter.config.layers
        only_last = layers == (-1,)
        output = self.llama.model(input_ids, visual_query=visual_query, output_hidden_states=not only_last)
        last = output.last_hidden_state
        if only_last:
            return last, last
        chosen = [output.hidden_states[layer] for layer in layers]
        return torch.stack(chosen) if len(chosen) > 1 else chosen[0], last

    def condition(self, batch: Batch, states: Tensor, f_img: Tensor, use_image: bool = True) -> Condition:
        """The condition of the batch's pictures."""
        return self.m3adapter(  # type: ignore[no-any-return]
            states, batch.answer_mask, batch.caption_mask, batch.image_mask, f_img, batch.has_context, use_image
        )

    @torch.no_grad()
    def frozen_features(self, batch: Batch, samples: Tensor) -> FrozenFeatures:
        """Features of the frozen networks that stage 1 needs.

        Args:
            batch: Raw inputs without context pictures, so that the empty one is encoded once for all.
            samples: Indices of the samples whose latents are computed, (n,).
        """
        states, _, _ = self.read(batch.input_ids, batch.context_pixels[:1], batch.attention_mask.sum(1))
        e_clip, e_pclip = self.decoder.encode_text(batch.caption_ids, batch.caption_ids_2)
        return FrozenFeatures(states, e_clip, e_pclip, self.decoder.encode_pixels(batch.target_pixels[samples]))

    def forward(
        self,
        batch: Batch,
        noise: DiffusionNoise,
        use_image: bool = True,
        with_text: bool = True,
        features: FrozenFeatures | None = None,
    ) -> M2ChatOutput:
        """One training pass.

        Args:
            batch: The samples.
            noise: Noise of the samples that are drawn.
            use_image: Whether the image branch and the gate take part (stage 2).
            with_text: Whether the language model is trained and its logits are wanted (stage 2).
            features: Features of the frozen networks, for stage 1; None computes them.
        """
        logits = labels = None
        if with_text:
            lengths = batch.attention_mask.sum(1)
            states, f_img, last = self.read(batch.input_ids, batch.context_pixels, lengths)
            scored = batch.labels[:, 1:] >= 0
            # Most positions are not scored, and at 7B the vocabulary's logits are the largest tensor of all.
            logits, labels = self.llama.lm_head(last[:, :-1][scored]), batch.labels[:, 1:][scored]
            e_clip, e_pclip = self.decoder.encode_text(batch.caption_ids, batch.caption_ids_2)
            latents = self.decoder.encode_pixels(batch.target_pixels[noise.samples])
        else:
            features = features or self.frozen_features(batch, noise.samples)
            states, latents = features.states, features.latents
            e_clip, e_pclip = features.e_clip, features.e_pclip
            f_img = states.new_zeros(len(batch), 1, self.clip.width)  # stage 1 reads no context picture
        condition = self.condition(batch, states, f_img, use_image)
        chosen = noise.samples.repeat(noise.draws)
        latents = latents.repeat(noise.draws, 1, 1, 1)
        noisy, target = self.decoder.diffuse(latents, noise.noise, noise.timesteps)
        keep = (~noise.drop).to(condition.h_align.dtype)[:, None]
        pooled = None if condition.h_palign is None else condition.h_palign[chosen] * keep
        prediction = self.decoder.predict(
            noisy, noise.timesteps, condition.h_align[chosen] * keep[..., None], pooled, batch.time_ids[chosen]
        )
        return M2ChatOutput(condition, e_clip, e_pclip, prediction, target, logits, labels)
