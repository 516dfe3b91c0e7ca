"""The model card beside exported weights, in the form that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STAGES = {
    "align": "stage 1 (alignment, Eq. 6): the M³Adapter without image branch and gate",
    "m3ft": "stage 2 (M³FT, Eq. 7): the M³Adapter, the adapter of the language model and the rows of two tokens",
}


def model_card(manifest: Mapping[str, Any], size: int) -> str:
    """Markdown with the header that model hubs read.

    Args:
        manifest: Fields of the weights' `Manifest`, as ``manifest.json`` has them.
        size: Size of ``model.safetensors`` in bytes.
    """
    step = "not recorded" if manifest["step"] is None else f"{manifest['step']:,}"
    backbone, fingerprints = manifest["backbone"], manifest["fingerprints"]
    settings = ("language_model", "adapter", "vision_encoder", "image_decoder")
    named = [name for name in fingerprints if name != "channel_order"] or settings
    backbones = "\n".join(
        f"| `{name}` | `{backbone[name if name in settings else 'image_decoder']}` | "
        f"`{fingerprints.get(name, 'not recorded')}` |"
        for name in named
    )
    return f"""\
---
library_name: m2chat
pipeline_tag: any-to-any
tags: [m2chat, interleaved-text-image]
license: other
---

# M²Chat weights: {manifest["stage"]}

Weights of {_STAGES.get(manifest["stage"], manifest["stage"])}.

`model.safetensors` holds {manifest["numbers"]:,} numbers in {size:,} bytes. The networks that were frozen are not in
here: they are loaded from their own files, and must be the ones that these weights were trained on. Of the image
decoder that means the text encoders; UNet, VAE and scheduler may be others.

| | |
|---|---|
| steps | {step} |
| trained on | {", ".join(manifest["tasks"]) or "not recorded"} |
| gate | {manifest["m3adapter"]["gate"]["mode"]} |
| image tokens | {backbone["num_image_tokens"]} |
| SHA-256 of `model.safetensors` | `{manifest["sha256"]}` |

| backbone | was | fingerprint |
|---|---|---|
{backbones}

`m2chat weights check FOLDER` verifies this folder. The licence follows from those of the backbones and of the data:
state it before you publish.
"""
