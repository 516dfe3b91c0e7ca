"""What the networks expect of pictures, from their configurations: sizes, mean and deviation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from m2chat.errors import UserError
from m2chat.integrity import verify_listed

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def drawn_size(image_decoder: Path) -> int:
    """Side in pixels of the pictures that an image decoder was trained on.

    Args:
        image_decoder: Folder of a diffusers pipeline, or SDXL in one file, whose side is 1024.

    Raises:
        UserError: If the folder does not have it.
    """
    if image_decoder.is_file():
        return 1024
    try:
        unet, vae = (json.loads((image_decoder / name / "config.json").read_text()) for name in ("unet", "vae"))
        return int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"image_decoder={str(image_decoder)!r} has no unet/config.json and vae/config.json that say how large its "
            f"pictures are ({error}): set data.image_size"
        ) from error


@dataclass(frozen=True)
class VisionInput:
    """The input of a vision encoder.

    Args:
        size: Side of the square picture, in pixels.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
    """

    size: int = 224
    mean: tuple[float, ...] = _OPENAI_MEAN
    std: tuple[float, ...] = _OPENAI_STD

    @classmethod
    def of(cls, vision_encoder: str) -> VisionInput:
        """The input of an encoder, from its configuration.

        Args:
            vision_encoder: Folder with ``open_clip_config.json``; or folder of transformers' CLIP, whose
                ``preprocessor_config.json`` has mean and deviation if they are not OpenAI's; or name of an open_clip
                model, behind which ``:`` and the tag of its weights are ignored here.

        Raises:
            UserError: If it is neither, or the folder's file is damaged.
        """
        path = Path(vision_encoder) / "open_clip_config.json"
        if path.is_file():
            verify_listed([path])
            config = json.loads(path.read_text())
            preprocess = config.get("preprocess_cfg", {})
            mean, std = preprocess.get("mean", _OPENAI_MEAN), preprocess.get("std", _OPENAI_STD)
            return cls(int(config["model_cfg"]["vision_cfg"]["image_size"]), tuple(mean), tuple(std))
        if (path := Path(vision_encoder) / "config.json").is_file():
            return cls._of_transformers(path)
        import open_clip

        architecture = vision_encoder.partition(":")[0]
        if architecture not in open_clip.list_models():
            raise UserError(
                f"vision_encoder={vision_encoder!r} is neither a folder with open_clip_config.json nor a model of "
                "open_clip: give a folder, or a name such as 'ViT-L-14-quickgelu:openai'; a file stands behind its "
                "architecture, as in 'ViT-L-14-quickgelu:/weights/ViT-L-14.pt', which decides the size of its pictures"
            )
        return cls(int(open_clip.get_model_config(architecture)["vision_cfg"].get("image_size", 224)))

    @classmethod
    def _of_transformers(cls, path: Path) -> VisionInput:
        """The input of an encoder in transformers' layout, from its ``config.json``."""
        verify_listed([path])
        config = json.loads(path.read_text())
        size = int(config.get("vision_config", config).get("image_size", 224))
        how = path.with_name("preprocessor_config.json")
        if not how.is_file():
            return cls(size)
        verify_listed([how])
        preprocess = json.loads(how.read_text())
        mean, std = preprocess.get("image_mean", _OPENAI_MEAN), preprocess.get("image_std", _OPENAI_STD)
        return cls(size, tuple(mean), tuple(std))
