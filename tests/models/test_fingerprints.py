from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.checkpoints import HEADER, check_header, read_checkpoint
from m2chat.models.config import BackboneConfig, NewAdapterConfig
from m2chat.models.fingerprints import READER, TEXT_SPACE, Fingerprints, drawing_fingerprint
from m2chat.models.weights.sampled import tensor_fingerprint

SHIPPED = Path("data", "micro", "m2chat", "m3ft.ckpt")


def copied(backbone: BackboneConfig, tmp_path: Path) -> BackboneConfig:
    """The same decoder elsewhere, to be changed."""
    return replace(backbone, image_decoder=str(shutil.copytree(backbone.image_decoder, tmp_path / "decoder")))


def change(path: Path, name: str, place: int) -> None:
    state = load_file(path)
    values = state[name].clone()
    values.view(-1)[place] += 1
    save_file({**state, name: values}, path, metadata={"format": "pt"})


def test_notes_places_and_precisions_change_nothing(backbone: BackboneConfig, tmp_path: Path) -> None:
    before, other = Fingerprints(backbone), copied(backbone, tmp_path)
    folder = Path(other.image_decoder)
    (folder / "README.md").write_text("Edited.")
    (folder / "model_index.json").write_text((folder / "model_index.json").read_text() + "\n")
    for name in ("text_encoder", "unet"):
        path = next((folder / name).glob("*.safetensors"))
        save_file({key: value.float() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    assert Fingerprints(other).components == before.components
    assert Fingerprints(other).legacy != before.legacy, "what it was before"
    assert Fingerprints(replace(backbone, num_image_tokens=99)).name == before.name
    assert Fingerprints(replace(backbone, channel_order="bgr")).name != before.name


@pytest.mark.parametrize(("part", "file"), [
    ("text_encoder", "model"), ("text_encoder_2", "model"), ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
])  # fmt: skip
def test_every_changed_network_has_another_name(backbone: BackboneConfig, tmp_path: Path, part: str, file: str) -> None:
    other = copied(backbone, tmp_path)
    path = Path(other.image_decoder, part, f"{file}.safetensors")
    change(path, max(load_file(path), key=lambda name: load_file(path)[name].numel()), -1)
    before, after = Fingerprints(backbone), Fingerprints(other)
    differing = {name for name, value in after.components.items() if before.components[name] != value}
    assert differing == {part} and drawing_fingerprint(other) != drawing_fingerprint(backbone)
    # A connector depends on the text encoders of its decoder and on nothing else in it.
    assert (before.name != after.name) == (part in TEXT_SPACE)


def test_the_scheduler_is_a_component(backbone: BackboneConfig, tmp_path: Path) -> None:
    other = copied(backbone, tmp_path)
    path = Path(other.image_decoder, "scheduler", "scheduler_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "_diffusers_version": "9"}))
    assert drawing_fingerprint(other) == drawing_fingerprint(backbone)
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.013}))
    assert drawing_fingerprint(other) != drawing_fingerprint(backbone)
    assert Fingerprints(other).name == Fingerprints(backbone).name


def test_large_tensors_are_sampled_and_small_ones_whole() -> None:
    small, large = torch.randn(1024), torch.randn(3, 10_000)
    name = tensor_fingerprint({"small": small, "large": large})

    def other(tensor: Tensor, place: int) -> bool:
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        both = {"small": small, "large": large} | {"small" if tensor is small else "large": changed}
        return tensor_fingerprint(both) != name

    assert all(other(small, place) for place in range(0, 1024, 31))
    assert all(other(large, place) for place in (0, 255, 9950, 20_000, 29_999)) and not other(large, 5000)
    assert tensor_fingerprint({"large": large, "text_model.small": small.half()}) == name
    assert tensor_fingerprint({"small": small.view(2, 512), "large": large}) != name
    assert tensor_fingerprint({"small": small, "wide": large}) != name


def test_weights_of_earlier_versions(backbone: BackboneConfig, tmp_path: Path) -> None:
    payload = read_checkpoint(SHIPPED)
    assert "fingerprints" not in payload[HEADER], "the shipped ones have the fingerprint of files"
    trained_on = BackboneConfig(**payload["config"]["backbone"])
    check_header(payload, "it", "m3ft", Fingerprints(backbone))
    other = copied(backbone, tmp_path)
    change(Path(other.image_decoder, "unet", "diffusion_pytorch_model.safetensors"), "conv_in.bias", 0)
    check_header(payload, "it", "m3ft", Fingerprints(other))
    with pytest.raises(UserError, match=r"it was trained on other backbones than those configured: set model\."):
        check_header({HEADER: payload[HEADER]}, "it", None, Fingerprints(other))
    with pytest.raises(UserError, match=r"it was trained on other backbones"):  # whose files are not there any more
        check_header(payload, "it", None, Fingerprints(other), replace(trained_on, image_decoder=str(tmp_path / "x")))


def test_another_text_space_is_refused(backbone: BackboneConfig, tmp_path: Path) -> None:
    other = copied(backbone, tmp_path)
    change(Path(other.image_decoder, "text_encoder_2", "model.safetensors"), "text_projection.weight", 7)
    payload = read_checkpoint(SHIPPED)
    prints = Fingerprints(backbone)
    now = {HEADER: {**payload[HEADER], "fingerprint": prints.name, "fingerprints": prints.components}}
    message = (
        r"backbone\.image_decoder='.*decoder' \(or --decoder\) has another text space than it was trained for: "
        r"text_encoder_2 differs from those of .*choose a decoder with the same ones.*train stage 1 again"
    )
    for written in (payload, now):
        with pytest.raises(UserError, match=message):
            check_header(written, "it", "m3ft", Fingerprints(other))
    with pytest.raises(UserError, match="text_encoder_2 differs"):  # SD 1.5 has the first one alone
        check_header(now, "it", None, Fingerprints(replace(backbone, image_decoder="data/micro/sd15")))
    with pytest.raises(UserError, match=r"another backbone\.vision_encoder than the one given"):
        check_header(now, "it", None, Fingerprints(replace(backbone, vision_encoder="data/micro/metric_clip")))


def test_stage_0_depends_on_the_sizes_of_its_adapter_and_on_no_image_decoder(backbone: BackboneConfig) -> None:
    new = replace(backbone, adapter="new", new_adapter=NewAdapterConfig(2, 2, 1, 2))
    prints = Fingerprints(replace(new, image_decoder="nowhere"), draws=False)
    assert set(prints.components) == {*READER}
    written = {"fingerprint": prints.name, "fingerprints": prints.components}
    assert Fingerprints(new, draws=False).differing(written) == []
    other = replace(new, new_adapter=NewAdapterConfig(3, 2, 1, 2))
    assert Fingerprints(other, draws=False).differing(written) == ["adapter"]
    earlier = {"fingerprint": Fingerprints(new).legacy}
    assert Fingerprints(new, draws=False).differing(earlier) == []
    assert Fingerprints(other, draws=False).differing(earlier) == ["backbone"]
