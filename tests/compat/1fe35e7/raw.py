"""Raw data as the converters find them, and small networks cut out of the micro ones: `make.sh` calls it.

Reads shown.png beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(sys.argv[1])
RAW = HERE / "raw"


def put(name: str, content: Any) -> None:
    path = RAW / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def picture(name: str, turns: int) -> None:
    """shown.png, turned by so many quarters."""
    path = RAW / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(Image.open(HERE / "shown.png").convert("RGB"))
    Image.fromarray(np.rot90(pixels, turns).copy()).save(path)


for turns, name in enumerate(("top", "left", "bottom", "right")):
    picture(f"folder/{name}.png", turns)
rows = [{"file_name": f"{name}.png", "text": f"a ring, {name}"} for name in ("top", "left", "bottom", "missing")]
put("folder/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
put("folder/prompt.txt", "please paint a large red circle on the left on a blue background\n")

put("alpaca.json", [{"instruction": "Add", "input": "2 and 2", "output": "4"}, {"instruction": "", "output": "x"}])
put(
    "llava.json",
    [
        {
            "id": "7", "image": "left.png",
            "conversations": [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "a ring"}],
        }
    ],
)  # fmt: skip
picture("coco-captions/val2014/COCO_val2014_000000000009.png", 0)
put(
    "coco-captions/annotations/captions_val2014.json",
    {
        "images": [{"id": 9, "file_name": "COCO_val2014_000000000009.png", "license": 1}],
        "licenses": [{"id": 1, "name": "some licence"}],
        "annotations": [{"image_id": 9, "id": 50 + k, "caption": f"caption {k}"} for k in range(5)],
    },
)
talk = [{"turn": [{"__TEXT__": "hi"}]}, {"turn": [{"__TEXT__": "look"}, {"__MEDIA__": "12"}]}]
put("mmdialog/conversations.json", json.dumps({"conversation_id": 3, "conversation": talk}) + "\n")
picture("mmdialog/12.png", 1)
(RAW / "mmdialog/12.png").rename(RAW / "mmdialog/12.jpg")  # MMDialog's names end in .jpg; what it is, the bytes say
for index in (1, 2):
    picture(f"vist/images/train/{index}.png", index)
parts = [
    [{"story_id": "45", "worker_arranged_photo_order": k, "photo_flickr_id": str(k), "original_text": f"Part {k}."}]
    for k in (1, 2)
]
put("vist/sis/train.story-in-sequence.json", {"annotations": parts})
told = [[{"photo_flickr_id": str(k), "original_text": f"a ring {k}"}] for k in (1, 2)]
put("vist/dii/train.description-in-isolation.json", {"annotations": told})
put("instructpix2pix/seeds.json", [["0001", ["5"]]])
put("instructpix2pix/0001/prompt.json", {"input": "a ring", "edit": "turn it", "output": "a turned ring"})
for side in (0, 1):
    picture(f"instructpix2pix/0001/5_{side}.jpg", side)
    picture(f"magicbrush/images/5/5-{side}.png", side)
put(
    "magicbrush/edit_sessions.json",
    {"5": [{"input": "5-0.png", "output": "5-1.png", "mask": "5-m.png", "instruction": "turn it"}]},
)

WIDTH = 24  # of CLIP's tokens, instead of 96


def cut(tensor: Tensor) -> Tensor:
    """The corner of a tensor whose sides are those of a network 24 wide."""
    sides = [side // 96 * WIDTH if side % 96 == 0 else side for side in tensor.shape]
    return tensor[tuple(slice(side) for side in sides)].clone()


full = torch.load("data/micro/adapter/BIAS-micro.pth", weights_only=True)
small = {name: tensor for name, tensor in full["model"].items() if not name.startswith("visual_blocks.1.")}
small |= {name: cut(tensor) for name, tensor in small.items() if name.startswith(("visual_", "clip_proj"))}
target = HERE / "backbone" / "BIAS-small.pth"
target.parent.mkdir(parents=True, exist_ok=True)
torch.save({"model": small, "config": full["config"]}, target)

clip = HERE / "backbone" / "clip"
clip.mkdir(exist_ok=True)
settings = json.loads(Path("data/micro/clip/open_clip_config.json").read_text(encoding="utf-8"))
settings["model_cfg"]["embed_dim"] = WIDTH
settings["model_cfg"]["vision_cfg"] |= {"width": WIDTH, "layers": 1}
settings["model_cfg"]["text_cfg"] |= {"width": WIDTH, "layers": 1, "heads": 1}
(clip / "open_clip_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
tower = load_file("data/micro/clip/open_clip_model.safetensors")
kept = {
    name: cut(tensor)
    for name, tensor in tower.items()
    if name.startswith("visual.") and "resblocks.1." not in name and "resblocks.2." not in name
}
save_file(kept, clip / "open_clip_model.safetensors", metadata={"format": "pt"})
