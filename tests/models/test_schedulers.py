from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig, LoraConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.schedulers import OWN_SPACING, PRESETS, SCHEDULERS, make_scheduler, scheduler_name

SIZE = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1)
NAMED = ("ddim", "euler", "dpmpp_2m")


def sample(decoder: ImageDecoder, scheduler: Any, encoded: tuple[Tensor, Tensor], **how: Any) -> Tensor:
    """What the decoder draws with a scheduler, in [0, 1]."""
    before, decoder.scheduler = decoder.scheduler, scheduler
    try:
        return (decoder.sample(*encoded, SIZE, [11, 12], **{"steps": 4, "guidance": 4.0, **how}) + 1) / 2
    finally:
        decoder.scheduler = before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "spacing"),
    [(name, None) for name in SCHEDULERS] + [(name, spacing) for name in NAMED for spacing in ("leading", "trailing")],
)
def test_each_promised_scheduler_draws_as_in_diffusers(
    name: str, spacing: Any, decoder: ImageDecoder, encoded: tuple[Tensor, Tensor], drawn: Any
) -> None:
    own = decoder.scheduler.config
    ours = sample(decoder, make_scheduler(name, own, spacing), encoded)
    kind = getattr(diffusers, SCHEDULERS[name])
    theirs = drawn(scheduler=kind.from_config(own, **({"timestep_spacing": spacing} if spacing else {})))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert ours.std() > 0.1


def test_the_spacing_and_the_scheduler_count(decoder: ImageDecoder, encoded: tuple[Tensor, Tensor]) -> None:
    made = [make_scheduler(*way) for way in (("ddim", decoder.scheduler.config, "leading"),
            ("ddim", decoder.scheduler.config, "trailing"), ("lcm", decoder.scheduler.config))]  # fmt: skip
    leading, trailing, lcm = (sample(decoder, scheduler, encoded) for scheduler in made)
    assert (leading - trailing).abs().max() > 0.01 and (lcm - trailing).abs().max() > 0.01


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_scheduler_with_its_numbers(
    name: str, backbone: BackboneConfig, encoded: tuple[Tensor, Tensor], drawn: Any
) -> None:
    preset, config = PRESETS[name], DecoderConfig(preset=name)
    decoder = ImageDecoder(backbone.image_decoder, config=config)
    assert type(decoder.scheduler).__name__ == SCHEDULERS[preset.scheduler]
    assert (config.steps, config.guidance) == (preset.steps, preset.guidance)
    # The noise of training stays that of the folder.
    assert decoder.noiser.config.rescale_betas_zero_snr and decoder.noiser.config.prediction_type == "v_prediction"
    assert config.interval == preset.interval
    ours = decoder.sample(*encoded, SIZE, [11, 12], config.steps, config.guidance, interval=(0.0, 1.0))
    theirs = drawn(
        config.steps, config.guidance, scheduler=type(decoder.scheduler).from_config(decoder.scheduler.config)
    )
    torch.testing.assert_close((ours + 1) / 2, theirs, atol=1e-4, rtol=0)
    if preset.spacing:
        assert decoder.scheduler.config.timestep_spacing == preset.spacing


def test_a_setting_of_its_own_overrides_the_preset(backbone: BackboneConfig) -> None:
    config = DecoderConfig(preset="lightning-4", scheduler="ddim", spacing="leading")
    scheduler = ImageDecoder(backbone.image_decoder, config=config).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler" and scheduler.config.timestep_spacing == "leading"
    # A preset's spacing is none of a scheduler that has timesteps of its own.
    assert DecoderConfig(preset="fast", scheduler="lcm").effective_spacing is None


def test_the_timesteps_that_few_step_networks_learned(backbone: BackboneConfig, decoder: ImageDecoder) -> None:
    learned = {}
    for name in PRESETS:
        made = ImageDecoder(backbone.image_decoder, config=DecoderConfig(preset=name))
        learned[name] = made.learned_timesteps
        if learned[name]:  # what is drawn in 4 steps is among what was learned
            made.scheduler.set_timesteps(4)
            assert {int(step) for step in made.scheduler.timesteps} <= set(learned[name])
    assert learned["turbo"] == learned["lightning-4"] == (999, 749, 499, 249) and learned["fast"] is None
    assert len(learned["lcm-4"]) == 50 and decoder.learned_timesteps is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": "dpmpp2m"}, r"backbone\.decoder\.scheduler='dpmpp2m': choose one of .*Did you mean 'dpmpp_2m'"),
        ({"preset": "lightning"}, r"backbone\.decoder\.preset='lightning': .*turbo, lightning-4, lcm-4, fast"),
        ({"spacing": "linspace"}, r"backbone\.decoder\.spacing='linspace': choose one of leading, trailing"),
        ({"scheduler": "lcm", "spacing": "trailing"}, r"the scheduler 'lcm' has timesteps of its own"),
        ({"preset": "lcm-4", "spacing": "leading"}, r"the scheduler 'lcm' has timesteps of its own"),
        ({"guidance_interval": [0.7, 0.2]}, r"backbone\.decoder\.guidance_interval=\[0\.7, 0\.2\]: give two shares"),
        ({"guidance_interval": [0.0, float("nan")]}, r"guidance_interval=\[0\.0, nan\]: give two shares"),
    ],
)
def test_wrong_names(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecoderConfig(**settings)
    assert "lcm" in OWN_SPACING


def test_other_families_and_unknown_schedulers_are_refused() -> None:
    for kind in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        with pytest.raises(UserError, match=rf"mine: its scheduler {kind} belongs to the EDM family"):
            scheduler_name(kind, "mine")
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler belongs to flow matching"):
        scheduler_name("FlowMatchEulerDiscreteScheduler", "mine")
    with pytest.raises(UserError, match=r"TCDScheduler is not supported; set .* to one of ddim"):
        scheduler_name("TCDScheduler", "mine")


def test_a_configuration_from_json_is_the_same() -> None:
    paths = {"language_model": "a", "adapter": "b", "vision_encoder": "c", "image_decoder": "d", "num_image_tokens": 8}
    assert BackboneConfig(**paths).decoder == DecoderConfig() == BackboneConfig(**paths, decoder=None).decoder
    settings = {"lora": [{"path": "x.safetensors", "weight": 0.5}], "scheduler": "euler"}
    decoder = BackboneConfig(**paths, decoder=settings).decoder
    assert decoder == DecoderConfig(lora=[LoraConfig("x.safetensors", 0.5)], scheduler="euler")
    with pytest.raises(UserError, match=r"backbone\.decoder: setting='loras': choose one of .*Did you mean 'lora'"):
        BackboneConfig(**paths, decoder={"loras": []})
