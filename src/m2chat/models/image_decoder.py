"""The image decoder: a frozen SDXL (or SD 1.5) that draws from a text condition.

Shapes: B batch, Q tokens of a caption, C and P widths of the sequence and the pooled condition, h and w of latents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.denoising import Denoising, OnStep, denoise, started
from m2chat.models.precision import full
from m2chat.models.schedulers import DEFAULT_GUIDANCE, DEFAULT_STEPS, Interval
from m2chat.models.vae import decode, encode
from m2chat.models.weights.diffusion import load_diffusion

_MOST_SIDES = 8
"""Greatest side of a picture, in sides of those that the UNet was made for."""


class ImageDecoder(nn.Module):
    """Text encoders, VAE, UNet and scheduler of SDXL (base or refiner) or SD 1.5, all frozen.

    Args:
        path: A diffusers folder, or SDXL in one ``.safetensors`` file.
        dtype: Precision of the networks; None keeps the files'.
        config: Parts that replace those of `path`, and the way it draws; None for nothing of that.
        without: Parts that are not loaded, see `m2chat.models.absent.Kept`.
        settled: As for `m2chat.models.build.build_m2chat`.

    Raises:
        UserError: If something is missing, broken or of another kind.
    """

    zeros = True
    """Whether the negative condition is zeros; else it is the encoding of the empty prompt."""
    predicting: Any = None
    """The UNet as training calls it, compiled; None for the UNet itself."""
    _negative: tuple[str, tuple[Tensor, Tensor | None]] | None = None

    def __init__(
        self,
        path: str | Path,
        dtype: torch.dtype | None = torch.float32,
        config: DecoderConfig | None = None,
        without: Collection[str] = (),
        settled: bool = True,
    ) -> None:
        from diffusers import DDPMScheduler

        super().__init__()
        self.path, self.config = Path(path), config or DecoderConfig()
        parts = load_diffusion(Path(path), "backbone.image_decoder", dtype, self.config, without, settled)
        self.text_encoder, self.text_encoder_2 = parts.text_encoder, parts.text_encoder_2
        self.vae, self.unet, self.scheduler = parts.vae, parts.unet, parts.scheduler
        self.preview_vae: Any = parts.preview_vae
        self.refiner, self.zeros = parts.refiner, parts.zeros
        self.is_xl = parts.text_encoder_2 is not None
        self.noiser: Any = DDPMScheduler.from_config(parts.noise_schedule)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ImageDecoder:
        """Stays in evaluation mode: it is frozen."""
        return super().train(False)

    @property
    def queries(self) -> int:
        """Q."""
        encoder = self.text_encoder_2 if self.text_encoder is None else self.text_encoder
        return int(encoder.config.max_position_embeddings)

    @property
    def sequence_width(self) -> int:
        """C."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def pooled_width(self) -> int:
        """P; 0 for SD 1.5."""
        return int(self.text_encoder_2.config.projection_dim) if self.is_xl else 0

    @property
    def image_size(self) -> int:
        """Height and width of the pictures that the UNet was made for, in pixels."""
        return int(self.unet.config.sample_size) * self.vae_factor

    @property
    def vae_factor(self) -> int:
        """Pixels of a latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_unit(self) -> int:
        """Pixels of which the sides of a picture are multiples: a latent of the UNet's coarsest level."""
        return int(self.vae_factor * 2**self.unet.num_upsamplers)

    @property
    def learned_timesteps(self) -> tuple[int, ...] | None:
        """Timesteps that a UNet of few steps was distilled on; None for one that was trained on all of them."""
        preset, total = self.config.settings, int(self.noiser.config.num_train_timesteps)
        if preset is None or preset.learned is None:
            return None
        return tuple(round(total * (1 - k / preset.learned)) - 1 for k in range(preset.learned))

    def checked_size(self, height: int, width: int, names: tuple[str, str] = ("height", "width")) -> tuple[int, int]:
        """Height and width of a picture in pixels, if VAE and UNet can draw it.

        Args:
            height: Height.
            width: Width.
            names: Settings that they come from, for the message.

        Raises:
            UserError: If a side is no multiple of `size_unit`; the message has the nearest ones that are. If it is more
                than `_MOST_SIDES` times that of the pictures that the UNet was made for.
        """
        unit, most = self.size_unit, _MOST_SIDES * self.image_size
        for name, side in zip(names, (height, width), strict=True):
            if isinstance(side, bool) or not isinstance(side, Integral):
                raise UserError(f"{name}={side!r}: give a number of pixels, a multiple of {unit}, as a whole number")
            if side > most:
                raise UserError(
                    f"{name}={side}: at most {most} pixels, {_MOST_SIDES} times the {self.image_size} that the UNet "
                    "was made for: draw smaller, and enlarge the picture"
                )
            below = int(side) // unit * unit
            if side < unit or side != below:
                choices = {max(below, unit), max(below + unit, unit)}
                nearest = " or ".join(map(str, sorted(choices)))
                raise UserError(f"{name}={side}: VAE and UNet need a multiple of {unit}; the nearest is {nearest}")
        return int(height), int(width)

    def checked_steps(self, steps: int) -> int:
        """A number of denoising steps, if the schedulers can draw in so many.

        Raises:
            UserError: If one cannot, as `lcm` in more steps than its original ones.
        """
        started(self.scheduler, steps, torch.device("cpu"))
        if self.refiner is not None:
            started(self.refiner.scheduler, steps, torch.device("cpu"))
        return steps

    @torch.no_grad()
    def encode_text(self, caption_ids: Tensor, caption_ids_2: Tensor) -> tuple[Tensor, Tensor | None]:
        """The alignment targets e_clip and e_pclip of captions.

        Args:
            caption_ids: (B, Q) of the first tokenizer.
            caption_ids_2: (B, Q) of the second.

        Returns:
            (B, Q, C) and (B, P); SD 1.5 has no pooled one.
        """
        if self.text_encoder is None:  # the refiner
            second = self.text_encoder_2(caption_ids_2, output_hidden_states=True)
            return second.hidden_states[-2], second.text_embeds
        first = self.text_encoder(caption_ids, output_hidden_states=True)
        if not self.is_xl:
            return first.last_hidden_state, None
        second = self.text_encoder_2(caption_ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    @torch.no_grad()
    def negative_condition(self, device: torch.device, prompt: str = "") -> tuple[Tensor, Tensor | None]:
        """The encoding of a negative prompt, (1, Q, C) and (1, P); that of the last one is kept.

        Args:
            device: Device on which the text encoders work.
            prompt: The prompt, by default the empty one.
        """
        if self._negative is None or self._negative[0] != prompt:
            from m2chat.text.clip_tokenizers import CaptionTokens

            ids, ids_2 = (tokens.to(device) for tokens in CaptionTokens(self.path)([prompt]))
            self._negative = prompt, self.encode_text(ids, ids_2)
        return self._negative[1]

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents of pictures in [-1, 1]: (B, 3, H, W) to (B, c, h, w)."""
        return encode(self.vae, pixels)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, preview: bool = False) -> Tensor:
        """Pictures in [-1, 1]: (B, c, h, w) to (B, 3, H, W).

        Args:
            latents: Latents.
            preview: Whether `preview_vae` decodes, if there is one.

        Raises:
            UserError: If latents in fp16 are not finite.
        """
        if self.unet.dtype == torch.float16:
            latents = latents.half()  # in which its overflow shows
        return decode(self.preview_vae if preview and self.preview_vae is not None else self.vae, latents)

    def diffuse(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and what the UNet should say of them, by the scheduler's `prediction_type`; both in fp32.

        In bf16 there would be no noise at all at the first timesteps: the schedule's numbers there round to 1.
        """
        latents, noise = full(latents), full(noise)
        noisy = self.noiser.add_noise(latents, noise, timesteps)
        kind = self.noiser.config.prediction_type
        if kind == "epsilon":
            return noisy, noise
        if kind == "v_prediction":
            return noisy, self.noiser.get_velocity(latents, noise, timesteps)
        raise UserError(f"the scheduler's prediction_type is {kind!r}; supported are 'epsilon' and 'v_prediction'")

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        h_align: Tensor,
        h_palign: Tensor | None,
        time_ids: Tensor,
    ) -> Tensor:
        """h_unet of Eq. 4; gradients reach the condition through the frozen UNet.

        Args:
            noisy: (B, c, h, w).
            timesteps: (B,) or a single one.
            h_align: (B, Q, C).
            h_palign: (B, P); ignored by SD 1.5.
            time_ids: (B, 6).
        """
        added = {"text_embeds": h_palign, "time_ids": time_ids} if self.is_xl else None
        unet = self.unet if self.predicting is None else self.predicting
        output: Tensor = unet(noisy.to(self.unet.dtype), timesteps, h_align, added_cond_kwargs=added).sample
        return output

    def denoise(
        self,
        h_align: Tensor,
        h_palign: Tensor | None,
        time_ids: Tensor,
        seeds: Sequence[int],
        steps: int = DEFAULT_STEPS,
        guidance: float = DEFAULT_GUIDANCE,
        interval: Interval | None = None,
        negative_prompt: str | None = None,
    ) -> Iterator[Denoising]:
        """Draws a step at a time; see `m2chat.models.denoising`.

        Args:
            h_align: (B, Q, C).
            h_palign: (B, P).
            time_ids: (B, 6); their last two are the pictures' height and width.
            seeds: Seed of each picture's noise, so that a picture does not depend on its batch.
            steps: Denoising steps.
            guidance: Weight of classifier-free guidance; the negative condition is zeros, as SDXL was trained, or the
                encoding of the empty prompt where a folder states that. 1 or less leaves it out.
            interval: Shares of the noise schedule, 0-1, between which guidance acts (arXiv:2404.07724): steps outside
                it compute half as much. None takes that of the configuration.
            negative_prompt: Text whose encoding is the negative condition, in place of the usual one.

        Returns:
            The state after every step.
        """
        interval = self.config.interval if interval is None else interval
        return denoise(self, h_align, h_palign, time_ids, seeds, steps, guidance, interval, negative_prompt)

    def sample(
        self,
        h_align: Tensor,
        h_palign: Tensor | None,
        time_ids: Tensor,
        seeds: Sequence[int],
        steps: int = DEFAULT_STEPS,
        guidance: float = DEFAULT_GUIDANCE,
        on_step: OnStep | None = None,
        interval: Interval | None = None,
    ) -> Tensor:
        """Draws pictures; arguments as for `denoise`.

        Args:
            h_align: (B, Q, C).
            h_palign: (B, P).
            time_ids: (B, 6).
            seeds: Seed of each picture's noise.
            steps: Denoising steps.
            guidance: Weight of classifier-free guidance.
            on_step: Looks at every step.
            interval: Shares of the noise schedule between which guidance acts.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        latents = h_align
        for state in self.denoise(h_align, h_palign, time_ids, seeds, steps, guidance, interval):
            ended = on_step is not None and on_step(state)
            latents = state.latents
            if ended:
                break
        return self.decode_latents(latents)
