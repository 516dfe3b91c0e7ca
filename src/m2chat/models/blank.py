"""The model without its weights: the same classes, on any device, from descriptions alone.

On the ``meta`` device it costs no memory, which is how a run is planned without a GPU; on a GPU it is the full-size
model with random weights, which is how speed is measured without a download.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m2chat.models import published
from m2chat.models.absent import Absent
from m2chat.models.adapter_file import AdapterShape
from m2chat.models.build import composed
from m2chat.models.config import NEW, BackboneConfig, M3AdapterConfig
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.reading import ReadingModel
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.models.weights.adapter import open_adapter
from m2chat.models.weights.clip import clip_settings, open_clip_tower
from m2chat.models.weights.files import load_json
from m2chat.models.weights.llama import llama_folder, open_llama
from m2chat.models.weights.new_adapter import with_updates

_NOT_SHAPES = ("model_type", "architectures", "dtype", "transformers_version")


def blank_m2chat(
    backbone: BackboneConfig, m3adapter: M3AdapterConfig, device: torch.device | str = "meta"
) -> tuple[M2ChatModel, list[str]]:
    """Builds the model without reading a weight.

    Args:
        backbone: A network that lies at its path is built from its description; one that does not is taken to be
            the paper's.
        m3adapter: Sizes and gate of the connector.
        device: Device of the model; weights are random there, and on ``meta`` there are none.

    Returns:
        The model in fp32, and a line for each network that was taken to be the paper's.
    """
    assumed: list[str] = []
    found = _LocalSizes.of(backbone)
    with torch.device(device):
        clip = _clip(backbone, found, assumed)
        llama, visual_query = _language(backbone, found, clip.width, assumed)
        decoder = BlankDecoder(backbone.image_decoder, backbone.decoder)
        if not Path(backbone.image_decoder).exists():
            assumed.append(f"backbone.image_decoder={backbone.image_decoder!r} is not there: taken to be SDXL base 1.0")
        return composed(m3adapter, llama, visual_query, clip, decoder), assumed


def blank_reading(backbone: BackboneConfig, device: torch.device | str = "meta") -> tuple[ReadingModel, list[str]]:
    """The same of what stage 0 trains: without connector and image decoder."""
    assumed: list[str] = []
    found = _LocalSizes.of(backbone)
    with torch.device(device):
        clip = _clip(backbone, found, assumed)
        llama, visual_query = _language(backbone, found, clip.width, assumed)
        return ReadingModel(llama, clip, visual_query), assumed


def without_cached(model: M2ChatModel) -> None:
    """Takes the networks whose outputs a feature cache keeps out of a model, in place."""
    model.clip = Absent("vision encoder", width=model.clip.width)  # type: ignore[assignment]
    model.llama = Absent("language model", config=model.llama.config)
    model.visual_query = Absent("visual query")  # type: ignore[assignment]
    decoder = model.decoder
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := getattr(decoder, name)) is not None:
            setattr(decoder, name, Absent(name.replace("_", " "), config=encoder.config))
    for half in ("encoder", "quant_conv"):
        setattr(decoder.vae, half, Absent(f"VAE's {half}"))


@dataclass(frozen=True)
class _LocalSizes:
    """Sizes that stand in files of weights alone.

    Args:
        llama: Settings of Meta's LLaMA; None of another folder.
        clip: Settings of CLIP in one file; None of anything else.
    """

    llama: dict[str, Any] | None
    clip: dict[str, Any] | None

    @classmethod
    def of(cls, backbone: BackboneConfig) -> _LocalSizes:
        """Reads them, outside of any other device than the CPU."""
        folder, llama, clip = llama_folder(Path(backbone.language_model)), None, None
        if (folder / "params.json").is_file():
            llama = open_llama(folder, "backbone.language_model").settings
        if Path(backbone.vision_encoder).is_file():
            clip = open_clip_tower(backbone.vision_encoder, "backbone.vision_encoder").settings
        return cls(llama, clip)


def _language(
    backbone: BackboneConfig, found: _LocalSizes, clip_width: int, assumed: list[str]
) -> tuple[Any, VisualQueryEncoder]:
    from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM

    folder, adapter = Path(backbone.language_model), Path(backbone.adapter)
    settings: dict[str, Any] = published.LLAMA_7B
    if found.llama is not None:
        settings = found.llama
    elif (folder / "config.json").is_file():
        settings = load_json(folder / "config.json", "backbone.language_model")
    else:
        assumed.append(f"backbone.language_model={str(folder)!r} is not there: taken to be LLaMA 7B")
    shape: AdapterShape = published.BIAS_7B
    if backbone.adapter == NEW:
        assert backbone.new_adapter is not None  # BackboneConfig refuses that
        new = backbone.new_adapter
        shape = AdapterShape(
            prompts=new.prompts,
            layers=new.layers,
            visual_depth=new.visual_blocks,
            visual_width=clip_width,
            visual_hidden=4 * clip_width,
            visual_heads=new.visual_heads,
            clip_width=clip_width,
            bias=True,
            lora_rank=new.lora_rank,
        )
    elif adapter.is_file():
        shape = open_adapter(adapter, "backbone.adapter", backbone.visual_heads, backbone.visual_blocks).shape
    else:
        assumed.append(f"backbone.adapter={str(adapter)!r} is not there: taken to be BIAS-7B")
    if (lora := backbone.new_lora) is not None:
        shape = with_updates(shape, lora, int(settings["num_hidden_layers"]), f"backbone.adapter={str(adapter)!r}")
    config = AdapterLlamaConfig(
        adapter_len=shape.prompts,
        adapter_layers=shape.layers,
        adapter_bias=True,  # of every variant: stage 2 trains those that the file lacks, from zero
        lora_rank=shape.lora_rank,
        lora_from=shape.lora_from,
        **{key: value for key, value in settings.items() if key not in _NOT_SHAPES},
    )
    return AdapterLlamaForCausalLM(config), shape.visual_query(config.hidden_size)


def _clip(backbone: BackboneConfig, found: _LocalSizes, assumed: list[str]) -> ClipTokens:
    import open_clip

    name = backbone.vision_encoder
    if Path(name).is_dir():
        settings = clip_settings(Path(name), "backbone.vision_encoder")
    elif found.clip is not None:
        settings = found.clip
    else:
        architecture = name.partition(":")[0]
        if architecture not in open_clip.list_models():
            assumed.append(f"backbone.vision_encoder={name!r} is not there: taken to be {published.CLIP_VIT_L_14}")
            architecture = published.CLIP_VIT_L_14
        settings = open_clip.get_model_config(architecture)
    settings = {
        key: value for key, value in settings.items() if key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    }
    # Of the text tower, which is thrown away, a layer is enough.
    settings["text_cfg"] = {**settings.get("text_cfg", {}), "layers": 1, "hf_tokenizer_name": None}
    return ClipTokens(open_clip.CLIP(**settings).eval().visual, backbone.channel_order)


class BlankDecoder(ImageDecoder):
    """An `ImageDecoder` whose parts come from their descriptions.

    Args:
        folder: The diffusers folder, read for its descriptions; SDXL base 1.0 if there is none.
        config: The way it draws; parts in place of those of the folder are taken to have the same sizes.
    """

    def __init__(self, folder: str | Path, config: DecoderConfig | None = None) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, schedulers
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        from m2chat.models.drawing_unet import UNet2DConditionModel

        nn.Module.__init__(self)
        self.config, self.preview_vae, self.refiner = config or DecoderConfig(), None, None
        root = Path(folder)
        known: dict[str, Any] = {
            "text_encoder": published.SDXL_TEXT_ENCODER,
            "text_encoder_2": published.SDXL_TEXT_ENCODER_2,
            "unet": published.SDXL_UNET,
            "vae": published.SDXL_VAE,
            "scheduler": published.SDXL_SCHEDULER,
        }
        scheduler = "EulerDiscreteScheduler"
        if root.is_dir():
            what = "backbone.image_decoder"
            index = load_json(root / "model_index.json", what)
            scheduler = index["scheduler"][1]
            files = {"scheduler": "scheduler_config.json"}
            known = {
                part: load_json(root / part / files.get(part, "config.json"), what) for part in known if part in index
            }
        self.is_xl = "text_encoder_2" in known
        text = {key: CLIPTextConfig(**_shape(known[key])) for key in known if key.startswith("text")}
        self.text_encoder: Any = CLIPTextModel(text["text_encoder"])
        self.text_encoder_2: Any = CLIPTextModelWithProjection(text["text_encoder_2"]) if self.is_xl else None
        self.vae: Any = AutoencoderKL.from_config(known["vae"])
        self.unet: Any = UNet2DConditionModel.from_config(known["unet"])
        with torch.device("cpu"):  # its tables of numbers are no weights
            self.scheduler: Any = getattr(schedulers, scheduler).from_config(known["scheduler"])
            self.noiser: Any = DDPMScheduler.from_config(self.scheduler.config)
        self.requires_grad_(False)
        self.eval()


def _shape(description: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in _NOT_SHAPES}
