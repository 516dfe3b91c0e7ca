"""`m2chat data caption`: the language model with its vision encoder writes the captions that are missing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.arguments import existing, in_range, new_folder
from m2chat.commands.common import device_of, dtype_of
from m2chat.commands.options import add_device_options

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from m2chat.models.config import BackboneConfig


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "caption", help="write the missing captions of shards with the language model and its vision encoder"
    )
    parser.add_argument("shards", metavar="SHARDS", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument(
        "dst", type=new_folder, metavar="DST", help="folder for the captioned shards; those there are kept"
    )
    parser.add_argument(
        "--language-model", type=existing("folder"), default="data/micro/llama", help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--adapter",
        type=existing("file"),
        default="data/micro/adapter/BIAS-micro.pth",
        help="file (default: %(default)s)",
    )
    parser.add_argument(
        "--vision-encoder", default="data/micro/clip", help="folder or open_clip name and tag (default: %(default)s)"
    )
    parser.add_argument("--channel-order", choices=("rgb", "bgr"), default="rgb", help="of the adapter's training")
    parser.add_argument(
        "--batch-size",
        type=in_range("batch_size"),
        default=16,
        metavar="N",
        help="pictures at once (default: %(default)s)",
    )
    add_device_options(parser)
    parser.set_defaults(run=run)


class LlamaCaptioner:
    """LLaMA-Adapter's captions of pictures, decoded greedily; loaded when the first one is wanted.

    Args:
        backbone: Configuration of the networks; the image decoder is not needed.
        device: Device of the networks.
        dtype: Their precision; None for fp32.
    """

    def __init__(
        self, backbone: BackboneConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self.backbone, self.device, self.dtype = backbone, device, dtype
        self.name = f"model:{Path(backbone.adapter).stem}"
        self._llama: Any = None

    def _load(self) -> None:
        from m2chat.data.network_inputs import VisionInput
        from m2chat.models.build import load_clip, load_language
        from m2chat.text import DESCRIBE, Layout, M2ChatTokenizer, Request

        llama, visual_query = load_language(self.backbone)
        llama, visual_query = llama.eval().to(self.device, self.dtype), visual_query.eval().to(self.device, self.dtype)
        self._llama, self._visual_query = llama, visual_query
        self._clip = load_clip(self.backbone).to(self.device, self.dtype)
        self._vision = VisionInput.of(self.backbone.vision_encoder)
        self._tokenizer = M2ChatTokenizer(self.backbone.language_model)
        room = int(llama.config.max_position_embeddings)
        layout = Layout(self._tokenizer, 0, room)
        self._end_id = layout.end_id
        self._prompt, _ = layout.prompt(Request(DESCRIBE), room)

    def captions(self, pictures: Sequence[NDArray[Any]]) -> list[str]:
        """Captions of pictures, RGB (H, W, 3), 0-255."""
        import numpy as np
        import torch

        from m2chat.batch import normalised
        from m2chat.data.images import resize_crop

        if self._llama is None:
            self._load()
        squares = np.stack([resize_crop(pixels, self._vision.size)[0] for pixels in pictures])
        pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous().to(self.device)  # (B, 3, S, S), 0-255
        pixel_values = normalised(pixels, self._vision.mean, self._vision.std)
        with torch.no_grad():
            output = self._llama.generate(
                torch.tensor([self._prompt] * len(pictures), device=self.device),
                visual_query=self._visual_query(self._clip(pixel_values)),
                max_new_tokens=64,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_id,
                eos_token_id=self._end_id,
            )
        texts = []
        for row in output.tolist():
            reply = row[len(self._prompt) :]
            end = reply.index(self._end_id) if self._end_id in reply else len(reply)
            texts.append(" ".join(self._tokenizer.decode(reply[:end]).split()))
        return texts


def run(options: argparse.Namespace) -> None:
    """Captions shards, and prints the counts.

    Raises:
        UserError: If there are no shards, or the target folder holds something else.
    """
    from m2chat.data.captioning import caption_shards
    from m2chat.data.shards import local_shards
    from m2chat.models.config import BackboneConfig

    paths = local_shards(options.shards, "SHARDS")
    device = device_of(options)
    backbone = BackboneConfig(
        str(options.language_model),
        str(options.adapter),
        options.vision_encoder,
        image_decoder="",  # captions need none
        num_image_tokens=0,
        channel_order=options.channel_order,
    )
    captioner = LlamaCaptioner(backbone, device, dtype_of(options, device))
    index = caption_shards(paths, options.dst, captioner, options.batch_size)
    print(f"{options.dst}: {len(paths)} shards, {index['samples']} samples with {index['pictures']} pictures")
    for reason, count in sorted(index["rejects"].items(), key=lambda item: -item[1]):
        print(f"  left out: {count:8} x {reason}")
