from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from m2chat.commands.weights.kinds import Kind, kind_of
from m2chat.data.network_inputs import VisionInput
from m2chat.errors import UserError
from m2chat.models.visual_encoder import ClipTokens
from m2chat.models.weights.clip import clip_settings, load_tower, local_clip_file, open_clip_tower


def folder_of(official: Any, path: Path) -> Path:
    """An open_clip folder of the miniature."""
    s = official.sizes
    vision = {"image_size": s.image, "layers": s.tower_layers, "width": s.tower_width, "patch_size": s.patch}
    model = {"embed_dim": s.clip_width, "quick_gelu": True, "vision_cfg": vision, "text_cfg": {"layers": 1}}
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    save_file(official.clip(), path / "open_clip_model.safetensors")
    return path


class Script(torch.nn.Module):
    """A TorchScript archive, as OpenAI publishes CLIP, with tensors of given names."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            at: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.register_parameter(last, torch.nn.Parameter(tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore")
def test_every_form_is_the_same_tower(official: Any, tmp_path: Path) -> None:
    save_file(official.clip(), tmp_path / "clip.safetensors")
    torch.save({"state_dict": official.clip()}, tmp_path / "clip.pt")
    torch.jit.script(Script(official.clip())).save(str(tmp_path / "script.pt"))
    forms = [tmp_path / "clip.safetensors", tmp_path / "clip.pt", tmp_path / "script.pt"]
    forms.append(folder_of(official, tmp_path / "folder"))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = [ClipTokens(load_tower(str(form), "x"))(pixels) for form in forms]
    assert seen[0].shape == (2, 17, official.sizes.clip_width) and seen[0].std() > 0.1
    assert all(torch.equal(one, seen[0]) for one in seen[1:])
    assert load_tower(str(forms[0]), "x", torch.bfloat16).proj.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection"])
def test_a_folder_of_transformers_is_the_same_network(kind: str, tmp_path: Path) -> None:
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 24, "patch_size": 8, "projection_dim": 20, "layer_norm_eps": 1e-3}  # fmt: skip
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    torch.manual_seed(0)
    if kind == "CLIPModel":
        config: Any = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=20)
    else:
        config = transformers.CLIPVisionConfig(**vision)
    theirs = getattr(transformers, kind)(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    alone = transformers.CLIPVisionModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        states = alone(pixels).last_hidden_state
        tower = getattr(theirs, "vision_model", theirs)
        wanted = theirs.visual_projection(tower.post_layernorm(states))
        ours = ClipTokens(load_tower(str(tmp_path), "x"))(pixels)
    assert ours.shape == (2, 10, 20) and ours.std() > 0.1
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
    assert VisionInput.of(str(tmp_path)) == VisionInput(24, (0.5,) * 3, (0.25,) * 3)
    assert kind_of(tmp_path) is Kind.CLIP
    # As LAION publishes them, with open_clip's description beside: the names of the tensors decide.
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": clip_settings(tmp_path, "x")}))
    with torch.no_grad():
        assert torch.equal(ClipTokens(load_tower(str(tmp_path), "x"))(pixels), ours)


def test_folders_of_transformers_that_do_not_fit(tmp_path: Path) -> None:
    import transformers

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no visual_projection: M²Chat reads CLIP's projected tokens"):
        open_clip_tower(str(tmp_path), "x")
    config = json.loads((tmp_path / "config.json").read_text())
    for entry, message in (
        ({"hidden_act": "relu"}, "the activation 'relu' is neither"),
        ({"model_type": "siglip"}, "a 'siglip'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **entry}))
        with pytest.raises(UserError, match=message):
            open_clip_tower(str(tmp_path), "x")


def test_a_file_behind_its_architecture(tmp_path: Path) -> None:
    tower = open_clip.create_model("ViT-B-32-quickgelu")
    torch.save(tower.half().state_dict(), tmp_path / "ViT-B-32.pt")
    name = f"ViT-B-32-quickgelu:{tmp_path / 'ViT-B-32.pt'}"
    loaded = load_tower(name, "x", torch.float32).state_dict()
    expected = tower.visual.float().state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(value, loaded[key]) for key, value in expected.items())
    assert local_clip_file(name) == tmp_path / "ViT-B-32.pt" and local_clip_file("ViT-B-32:openai") is None
    with pytest.raises(UserError, match=r"ViT-L-14-quickgelu:.*width 768 with patches of 32.*has 1024 and 14"):
        load_tower(f"ViT-L-14-quickgelu:{tmp_path / 'ViT-B-32.pt'}", "x")


def test_the_wrong_activation_is_refused() -> None:
    with pytest.raises(UserError, match=r"trained with QuickGELU, and ViT-L-14 has.*use.*'ViT-L-14-quickgelu'"):
        open_clip_tower("ViT-L-14:openai", "backbone.vision_encoder")
    with pytest.raises(
        UserError, match=r"'laion2b_s32b_b82k' is neither a file nor weights of ViT-L-14-quickgelu; known"
    ):
        open_clip_tower("ViT-L-14-quickgelu:laion2b_s32b_b82k", "x")


def test_mistakes_name_the_choices(official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"backbone\.v='nothing' is neither a folder nor a file nor an open_clip name"):
        open_clip_tower("nothing", "backbone.v")
    with pytest.raises(
        UserError, match=r"'openia' is neither a file nor weights of ViT-L-14-quickgelu; known are .*openai"
    ):
        open_clip_tower("ViT-L-14-quickgelu:openia", "x")

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(
        UserError, match=r"could not be downloaded: no network\. Copy the file here and set x=ViT-L-14-qu"
    ):
        open_clip_tower("ViT-L-14-quickgelu:openai", "x")
    save_file({"visual.conv1.weight": torch.zeros(8, 3, 2, 2)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"lacks 'visual\.positional_embedding': expected is a CLIP vision transformer"):
        open_clip_tower(str(tmp_path / "part.safetensors"), "x")
    folder = folder_of(official, tmp_path / "folder")
    save_file({"text": torch.zeros(1)}, folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"expected are the weights of a CLIP vision transformer .*found \['text'\]"):
        load_tower(str(folder), "x")
