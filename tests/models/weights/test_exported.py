from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from m2chat.errors import UserError
from m2chat.models.build import build_m2chat
from m2chat.models.config import BackboneConfig, GateConfig, M3AdapterConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import Stage, trainable_names
from m2chat.models.weights.exported import export_model, export_weights, load_model, load_weights, read_manifest

CONFIG = M3AdapterConfig(width=48, heads=4, gate=GateConfig("learnable"))


@pytest.fixture(scope="module")
def trained(backbone: BackboneConfig) -> M2ChatModel:
    """A model in which everything that stage 2 trains has moved."""
    model = build_m2chat(backbone, CONFIG).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    named = dict(model.named_parameters())
    for name in sorted(trainable_names(model, "m3ft")):
        named[name].add_(torch.randn(named[name].shape, generator=generator) * 0.01)
    return model


@pytest.fixture(scope="module")
def folder(trained: M2ChatModel, backbone: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("export") / "m3ft"
    export_model(trained, "m3ft", backbone, path, step=1000, tasks=["story", "dialogue"])
    return path


def test_a_folder_becomes_the_same_model_again(trained: M2ChatModel, backbone: BackboneConfig, folder: Path) -> None:
    model, manifest = load_model(folder)
    ours, theirs = trained.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not model.training
    assert (manifest.stage, manifest.step, manifest.tasks) == ("m3ft", 1000, ["dialogue", "story"])
    assert manifest.fingerprint == Fingerprints(backbone).name and manifest.backbone == backbone
    assert manifest.m3adapter == CONFIG and len(set(manifest.fingerprints.values())) == 9


@pytest.mark.parametrize("stage", ["align", "m3ft"])
def test_the_trained_tensors_and_nothing_else(
    trained: M2ChatModel, backbone: BackboneConfig, tmp_path: Path, stage: Stage
) -> None:
    from safetensors.torch import load_file

    manifest = export_model(trained, stage, backbone, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == trainable_names(trained, stage)
    assert manifest.numbers == sum(tensor.numel() for tensor in tensors.values())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "m2chat.sha256", "manifest.json", "model.safetensors",
    ]  # fmt: skip


def test_the_card_is_one_that_hubs_read(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "m2chat" and card.data.pipeline_tag == "any-to-any"
    assert read_manifest(folder).sha256 in card.text and "stage 2 (M³FT, Eq. 7)" in card.text
    assert not any(line.endswith(" ") for line in card.text.splitlines())


def test_every_flipped_byte_is_noticed(trained: M2ChatModel, folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    try:
        for place in range(len(whole) // 2, len(whole), len(whole) // 9):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(UserError, match=r"model\.safetensors is damaged or was replaced: its SHA-256 differs"):
                load_weights(trained, folder)
        path.write_bytes(whole[:-9])
        with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
            load_weights(trained, folder)
    finally:
        path.write_bytes(whole)


def test_other_backbones_are_named(folder: Path, backbone: BackboneConfig, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    payload = torch.load(backbone.adapter, weights_only=True)
    payload["model"]["adapter_query.weight"][-1, -1] += 1
    torch.save(payload, other)
    message = r"m3ft was trained on another backbone\.adapter than the one given: it was '.*BIAS-micro\.pth' there"
    with pytest.raises(UserError, match=message):
        load_model(folder, replace(backbone, adapter=str(other)))


def test_another_model_has_no_place_for_the_tensors(backbone: BackboneConfig, folder: Path) -> None:
    model = build_m2chat(backbone, replace(CONFIG, width=96, heads=4))
    with pytest.raises(UserError, match=r"of another shape \(m3adapter.*Build the model with the numbers in manifest"):
        load_weights(model, folder)
    shallow = build_m2chat(backbone, replace(CONFIG, blocks=1))
    with pytest.raises(UserError, match=r"unexpected \(m3adapter\.image_blocks\.1"):
        load_weights(shallow, folder)


def test_bad_folders(trained: M2ChatModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*nowhere/manifest\.json"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a manifest of M2Chat's weights: name a folder written by export"):
        load_model(tmp_path)
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for change, message in (
        ({"format": 99}, r"has layout 99, this version reads up to 1: update m2chat"),
        ({"m3adapter": {"wide": 1}}, r"cannot be understood"),
        ({"backbone": {"llm": "x"}}, r"cannot be understood .*llm"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({"m2chat": {**data["m2chat"], **change}}))
        with pytest.raises(UserError, match=message):
            load_model(tmp_path)
    with pytest.raises(UserError, match=r"w holds numbers that are not finite"):
        export_weights({"w": torch.tensor([torch.nan])}, read_manifest(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"is there already and has something in it"):
        export_weights({}, read_manifest(folder), tmp_path)


def test_exported_weights_give_way_to_newer_ones(
    trained: M2ChatModel, backbone: BackboneConfig, tmp_path: Path
) -> None:
    export_model(trained, "align", backbone, tmp_path / "out", step=1)
    export_model(trained, "m3ft", backbone, tmp_path / "out", step=2)
    assert (read_manifest(tmp_path / "out").stage, read_manifest(tmp_path / "out").step) == ("m3ft", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing else is left"
