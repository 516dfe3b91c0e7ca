"""Parts of the image decoder from files of their own, beside diffusers' pipeline with the same parts."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2chat.checksums import sha256
from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig, LoraConfig, decoder_config
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.weights.families import require_supported
from m2chat.models.weights.loras import add_loras, lora_file
from m2chat.models.weights.sdxl_file import take_apart

SIZE = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1)
LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn2"


def sample(decoder: ImageDecoder, encoded: tuple[Tensor, Tensor]) -> Tensor:
    return (decoder.sample(*encoded, SIZE, [11, 12], 4, 4.0) + 1) / 2


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


@pytest.fixture(scope="module")
def loras(backbone: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three LoRAs: as PEFT trains it, its factor in the header; in kohya's form with alphas; and with text encoders."""
    from peft import LoraConfig as Settings
    from peft import get_peft_model_state_dict

    folder = tmp_path_factory.mktemp("loras")
    unet = UNet2DConditionModel.from_pretrained(f"{backbone.image_decoder}/unet")
    torch.manual_seed(0)
    unet.add_adapter(Settings(r=4, lora_alpha=8, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False))
    StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet), weight_name="peft.safetensors",
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )  # fmt: skip
    key, query = unet.config.cross_attention_dim, unet.config.block_out_channels[0]
    kohya = {}
    for name, wide in (("to_k", key), ("to_q", query)):
        kohya |= {
            f"lora_unet_{LAYER}_{name}.lora_down.weight": noise(2, wide),
            f"lora_unet_{LAYER}_{name}.lora_up.weight": noise(query, 2),
            f"lora_unet_{LAYER}_{name}.alpha": torch.tensor(1.0),
        }
    save_file(kohya, folder / "kohya.safetensors")
    layer = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    text = {f"{layer}.lora_down.weight": noise(2, 64), f"{layer}.lora_up.weight": noise(64, 2)}
    save_file({**kohya, **text, f"{layer}.alpha": torch.tensor(1.0)}, folder / "text.safetensors")
    return [folder / f"{name}.safetensors" for name in ("peft", "kohya", "text")]


@pytest.mark.filterwarnings("ignore")
def test_loras_change_the_picture_as_diffusers_does(
    loras: list[Path], backbone: BackboneConfig, pipeline: Any, drawn: Any, encoded: tuple[Tensor, Tensor],
    decoder: ImageDecoder,
) -> None:  # fmt: skip
    weights = (0.7, -0.5)
    files = [Path(backbone.image_decoder) / "unet" / "diffusion_pytorch_model.safetensors", *loras]
    before = [sha256(path) for path in files]
    chosen = [LoraConfig(str(path), weight) for path, weight in zip(loras, weights, strict=False)]
    ours = ImageDecoder(backbone.image_decoder, config=DecoderConfig(lora=chosen))
    assert ours.state_dict().keys() == decoder.state_dict().keys(), "the networks are plain again"
    assert [sha256(path) for path in files] == before
    try:
        for name, path in zip("ab", loras, strict=False):
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        pipeline.set_adapters(["a", "b"], list(weights))
        both = drawn()
        pipeline.set_adapters(["a"], [1.0])
        first = drawn()
    finally:
        pipeline.unload_lora_weights()
    torch.testing.assert_close(sample(ours, encoded), both, atol=1e-4, rtol=0)
    alone = ImageDecoder(backbone.image_decoder, config=DecoderConfig(lora=[LoraConfig(str(loras[0]))]))
    torch.testing.assert_close(sample(alone, encoded), first, atol=1e-4, rtol=0)
    assert (both - drawn()).abs().max() > 0.01 and (both - first).abs().max() > 0.01


def test_what_a_lora_changes_in_text_encoders_is_left_out(
    loras: list[Path], backbone: BackboneConfig, decoder: ImageDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ImageDecoder(backbone.image_decoder, config=DecoderConfig(lora=[LoraConfig(str(loras[2]))])).state_dict()
    theirs = decoder.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed and all(LAYER.replace("_", ".") in name.replace("_", ".") for name in changed)
    assert "changes text encoders too; that part is left out" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"lora_unet_{LAYER}_to_k.lora_down.weight": (2, 768), f"lora_unet_{LAYER}_to_k.lora_up.weight": (64, 2)},
         r"lora\[0\]\.path=.*made for another network .* 1 of its 2 .*attn2\.to_k is 160 wide, and 768 in the file"),
        ({"unet.down_blocks.7.attentions.0.proj_in.lora_A.weight": (2, 64),
          "unet.down_blocks.7.attentions.0.proj_in.lora_B.weight": (64, 2)}, r"there is no layer down_blocks\.7"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (2, 64)}, "it changes no UNet"),
        ({"unet.conv_in.weight": (2, 2)}, r"is no LoRA .*conv_in\.weight, which is of another method"),
    ],
)  # fmt: skip
def test_a_lora_of_another_network_is_refused(
    tensors: dict[str, tuple[int, ...]], message: str, backbone: BackboneConfig, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message):
        ImageDecoder(
            backbone.image_decoder, config=DecoderConfig(lora=[LoraConfig(str(tmp_path / "other.safetensors"))])
        )


PLACE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PLACE}.lora_A.weight": (2, 160)}, r"is not whole: .*attn2\.to_k has lora_A alone"),
        ({f"{PLACE}.lora_A.weight": (2, 160), f"{PLACE}.lora_B.weight": (64, 3)}, "A of rank 2 and lora_B of rank 3"),
        ({"conv_in.lora_A.weight": (2, 8, 5, 5), "conv_in.lora_B.weight": (64, 2, 1, 1)}, "network.*conv_in has"),
        ({"conv_in.lora_A.weight": (2, 8), "conv_in.lora_B.weight": (64, 2)}, r"has weights of \[64, 8, 3, 3\]"),
    ],
)  # fmt: skip
def test_a_lora_whose_matrices_do_not_fit(
    tensors: dict[str, tuple[int, ...]], message: str, backbone: BackboneConfig, decoder: ImageDecoder, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"unet.{name}": torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(UserError, match=message):
        add_loras(decoder.unet, [LoraConfig(str(path))])


def test_numbers_that_are_not_finite(
    loras: list[Path], decoder: ImageDecoder, backbone: BackboneConfig, tmp_path: Path
) -> None:
    state = load_file(loras[1])
    name = next(name for name in state if name.endswith("lora_up.weight"))
    save_file({**state, name: state[name] * torch.nan}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=rf"{name} has numbers that are not finite"):
        add_loras(decoder.unet, [LoraConfig(str(tmp_path / "nan.safetensors"))])
    wanted = {**decoder.unet.state_dict()}
    wanted["conv_in.bias"] = wanted["conv_in.bias"] * torch.inf
    save_file(wanted, tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match=r"backbone\.decoder\.unet.*conv_in\.bias has numbers that are not finite"):
        ImageDecoder(backbone.image_decoder, config=DecoderConfig(unet=str(tmp_path / "unet.safetensors")))


@pytest.mark.parametrize("form", ["peft", "network"])
@pytest.mark.filterwarnings("ignore")
def test_a_lora_of_a_unet_alone(form: str, backbone: BackboneConfig, decoder: ImageDecoder, tmp_path: Path) -> None:
    from peft import LoraConfig as Settings
    from peft import get_peft_model

    unet = UNet2DConditionModel.from_pretrained(f"{backbone.image_decoder}/unet")
    settings = Settings(r=4, lora_alpha=12, target_modules=["to_q", "conv1"], init_lora_weights=False)
    if form == "peft":
        trained = get_peft_model(unet, settings)
        trained.save_pretrained(tmp_path)
        merged = trained.merge_and_unload().state_dict()
    else:
        unet.add_adapter(settings)
        unet.save_lora_adapter(tmp_path)
        unet.fuse_lora()
        unet.unload_lora()
        merged = unet.state_dict()
    path = lora_file(tmp_path)
    assert path is not None
    network = copy.deepcopy(decoder.unet)
    add_loras(network, [LoraConfig(str(path))])
    assert (network.conv_in.weight - decoder.unet.conv_in.weight).abs().max() == 0
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, merged[name], atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(value, merged[name]) for name, value in decoder.unet.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"lora": [{"path": "x", "weight": w}]}, "weight=.*give a number from -10 to 10")
          for w in (float("nan"), float("inf"), 1e30, "0.5", None, True)),
        ({"lora": ["x"]}, "'x' is no LoRA: give a list"),
        ({"lora": "x"}, "lora='x': give a list"),
        ({"lora": {"path": "x"}}, "give a list"),
        ({"lora": [{"path": "x", "wieght": 1}]}, "wieght.*Did you mean 'weight'"),
        ({"lora": [{"weight": 1}]}, "names no file"),
        ({"refiner_start": "half"}, "refiner_start='half': must lie between 0 and 1"),
        ({"guidance_interval": "ab"}, "guidance_interval='ab': give two shares"),
        ({"guidance_interval": ["a", 1]}, "give two shares"),
        ({"scheduler": ["ddim"]}, "choose one of"),
        ({"vae": 3}, r"backbone\.decoder\.vae=3: give a path"),
        ("x", "give settings by name"),
    ],
)  # fmt: skip
def test_settings_of_another_form(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder_config(settings)


def test_parts_that_are_missing(backbone: BackboneConfig) -> None:
    for settings in ({"unet": "/nope"}, {"vae": "/nope"}, {"preview_vae": "/nope"}, {"lora": [{"path": "/nope"}]}):
        with pytest.raises(UserError, match=r"backbone\.decoder\..*there is no /nope"):
            ImageDecoder(backbone.image_decoder, config=decoder_config(settings))


def test_a_lora_that_is_no_file(backbone: BackboneConfig, loras: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(loras[0].read_bytes()[:-100])
    for path, message in (
        (tmp_path / "none.safetensors", r"lora\[0\]\.path: there is no .*none"),
        (cut, "cut.safetensors is truncated"),
        (tmp_path / "x.ckpt", r"expected is one \.safetensors file"),
    ):
        with pytest.raises(UserError, match=message):
            ImageDecoder(backbone.image_decoder, config=DecoderConfig(lora=[LoraConfig(str(path))]))


def test_a_unet_from_a_file_or_a_folder(
    backbone: BackboneConfig, tmp_path: Path, decoder: ImageDecoder, encoded: tuple[Tensor, Tensor]
) -> None:
    wanted = {name: value + 0.01 * noise(*value.shape) for name, value in decoder.unet.state_dict().items()}
    save_file(wanted, tmp_path / "few_steps.safetensors")
    folder = shutil.copytree(f"{backbone.image_decoder}/unet", tmp_path / "unet")
    save_file(wanted, folder / "diffusion_pytorch_model.safetensors")
    pictures = []
    for path in (tmp_path / "few_steps.safetensors", folder):
        made = ImageDecoder(backbone.image_decoder, config=DecoderConfig(unet=str(path)))
        assert all(torch.equal(value, wanted[name]) for name, value in made.unet.state_dict().items())
        assert all(torch.equal(a, b) for a, b in zip(made.vae.parameters(), decoder.vae.parameters(), strict=True))
        pictures.append(sample(made, encoded))
    assert torch.equal(*pictures) and (pictures[0] - sample(decoder, encoded)).abs().max() > 0.01
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 768}))
    (tmp_path / "x.bin").touch()
    for path, message in (
        (tmp_path / "other.safetensors", r"backbone\.decoder\.unet=.*other.*its tensors are not the expected ones"),
        (folder, r"backbone\.decoder\.unet=.*cross_attention_dim is 768 there and 160"),
        (tmp_path / "x.bin", r"backbone\.decoder\.unet=.*expected is a folder of a diffusers UNet, or one"),
    ):
        with pytest.raises(UserError, match=message):
            ImageDecoder(backbone.image_decoder, config=DecoderConfig(unet=str(path)))


def tiny(folder: Path, latents: int = 8, levels: int = 3) -> AutoencoderTiny:
    """A small random `AutoencoderTiny` on the micro VAE's latents, with weights that draw more than grey."""
    torch.manual_seed(1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels, decoder_block_out_channels=(8,) * levels, latent_channels=latents,
        num_encoder_blocks=(1,) * levels, num_decoder_blocks=(1,) * levels,
    ).eval()  # fmt: skip
    for parameter in vae.parameters():
        parameter.data.mul_(2)
    vae.save_pretrained(folder)
    return vae


def test_a_tiny_vae_draws_and_previews(
    backbone: BackboneConfig, tmp_path: Path, decoder: ImageDecoder, drawn: Any, encoded: tuple[Tensor, Tensor]
) -> None:
    vae = tiny(tmp_path / "tiny")
    ours = ImageDecoder(backbone.image_decoder, config=DecoderConfig(vae=str(tmp_path / "tiny")))
    picture = sample(ours, encoded)
    torch.testing.assert_close(picture, drawn(vae=vae), atol=1e-4, rtol=0)
    assert picture.std() > 0.01 and ours.image_size == 32
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_pixels(pixels), vae.encode(pixels).latents)
    previews = ImageDecoder(backbone.image_decoder, config=DecoderConfig(preview_vae=str(tmp_path / "tiny")))
    latents = torch.randn(1, 8, 8, 8)
    assert torch.equal(previews.decode_latents(latents), decoder.decode_latents(latents))
    assert torch.equal(previews.decode_latents(latents, preview=True), ours.decode_latents(latents))
    assert torch.equal(decoder.decode_latents(latents, preview=True), decoder.decode_latents(latents))


def test_a_vae_of_other_latents_is_refused(backbone: BackboneConfig, tmp_path: Path) -> None:
    tiny(tmp_path / "four", latents=4)
    tiny(tmp_path / "deep", levels=4)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC"}))
    for name, entries in (("scaled", {"scaling_factor": 0.18215}), ("shifted", {"shift_factor": 0.1})):
        config = json.loads(
            (shutil.copytree(f"{backbone.image_decoder}/vae", tmp_path / name) / "config.json").read_text()
        )
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **entries}))
    for name, message in (
        ("four", r"backbone\.decoder\.vae=.*has 4 latent channels, the VAE of the image decoder 8"),
        ("deep", r"has 8 pixels of a latent, the VAE of the image decoder 4"),
        ("other", "is a AutoencoderDC: expected is an AutoencoderKL or an AutoencoderTiny"),
        ("scaled", r"scaling_factor 0\.18215, expected is 1\.12572"),
        ("shifted", "has shift_factor"),
    ):
        for setting in ("vae", "preview_vae"):
            with pytest.raises(UserError, match=message.replace(r"decoder\.vae", rf"decoder\.{setting}")):
                ImageDecoder(backbone.image_decoder, config=decoder_config({setting: str(tmp_path / name)}))


@pytest.fixture(scope="module")
def folder(backbone: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(backbone.image_decoder, tmp_path_factory.mktemp("family") / "sdxl")


@pytest.fixture
def changed(folder: Path) -> Iterator[Any]:
    """Changes entries of a description for the length of a test."""
    kept: dict[Path, str] = {}

    def change(name: str, entries: dict[str, Any]) -> None:
        path = folder / name
        kept.setdefault(path, path.read_text())
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    yield change
    for path, content in kept.items():
        path.write_text(content)


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "is SD3: M²Chat draws with SDXL"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is FLUX"),
        ("model_index.json", {"_class_name": "SanaPipeline"}, "is Sana"),
        ("model_index.json", {"_class_name": "NewPipeline", "transformer": ["diffusers", "X"]}, "draws with a transf"),
        ("model_index.json", {"text_encoder": ["kolors", "ChatGLMModel"]}, "its text_encoder is a ChatGLMModel"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "belongs to the EDM family"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        ("scheduler/scheduler_config.json", {"_class_name": "TCDScheduler"}, "TCDScheduler is not supported"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type 'sample'; supported are"),
        ("vae/config.json", {"latents_mean": [0.1] * 8}, "its VAE has latents_mean"),
        ("vae/config.json", {"latents_std": [0.1] * 8}, "its VAE has latents_std"),
        ("unet/config.json", {"in_channels": 9}, "the UNet has 9 input and 8 output channels"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "as whole LCM UNets do: use the LCM-LoRA"),
    ],
)
def test_models_of_the_same_layout_and_another_family(
    name: str, entries: dict[str, Any], message: str, folder: Path, changed: Any
) -> None:
    changed(name, entries)
    with pytest.raises(UserError, match=message):
        ImageDecoder(folder)


def test_another_scheduler_may_replace_one_that_is_not_supported(folder: Path, changed: Any) -> None:
    changed("scheduler/scheduler_config.json", {"_class_name": "TCDScheduler"})
    scheduler = ImageDecoder(folder, config=DecoderConfig(scheduler="euler")).scheduler
    assert type(scheduler).__name__ == "EulerDiscreteScheduler" and scheduler.config.rescale_betas_zero_snr


def test_inpainting_and_editing_networks_by_name() -> None:
    for channels, name in ((9, "an inpainting UNet"), (8, "an InstructPix2Pix UNet")):
        unet = {"in_channels": channels, "out_channels": 4}
        with pytest.raises(UserError, match=f"it is {name}"):
            require_supported({"unet": unet, "vae": {"latent_channels": 4}, "scheduler": {}}, "mine")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "SD3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("edm_mean", "a model of the EDM family"),
    ],
)
def test_single_files_of_other_families(name: str, family: str) -> None:
    with pytest.raises(UserError, match=f"mine is {family}"):
        take_apart({name: torch.zeros(1)}, "mine")
