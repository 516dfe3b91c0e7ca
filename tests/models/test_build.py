from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from m2chat.errors import UserError
from m2chat.models.adapter_file import from_official
from m2chat.models.build import build_m2chat, check_layers, load_clip, load_language
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.weights.adapter import open_adapter


def test_language_model_holds_both_files_tensors(backbone: BackboneConfig) -> None:
    llama, visual_query = load_language(backbone)
    own = {f"llama.{name}": value for name, value in llama.state_dict().items()}
    own |= {f"visual_query.{name}": value for name, value in visual_query.state_dict().items()}
    official = open_adapter(Path(backbone.adapter), "adapter").state
    adapter = from_official(official, llama.config.num_attention_heads, llama.config.num_hidden_layers)
    assert all(torch.equal(own[name], value) for name, value in adapter.items())
    plain = LlamaForCausalLM.from_pretrained(backbone.language_model, dtype=torch.float32).state_dict()
    rest = {f"llama.{name}": value for name, value in plain.items() if f"llama.{name}" not in adapter}
    assert rest and all(torch.equal(own[name], value) for name, value in rest.items())
    rows = {"llama.model.embed_tokens.extra", "llama.lm_head.extra"}
    assert set(own) == set(adapter) | set(rest) | rows, "nothing is left as it was initialised"


def test_missing_parts_name_setting_and_path(backbone: BackboneConfig, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for setting in ("language_model", "adapter", "image_decoder"):
        with pytest.raises(UserError, match=rf"backbone\.{setting}.*nowhere"):
            build_m2chat(replace(backbone, **{setting: nowhere}), M3AdapterConfig(width=8, heads=2))
    with pytest.raises(UserError, match=r"backbone\.vision_encoder='.*nowhere' is neither a folder nor"):
        load_clip(replace(backbone, vision_encoder=nowhere))
    with pytest.raises(UserError, match=r"backbone\.vision_encoder: there is no .*open_clip_config\.json"):
        load_clip(replace(backbone, vision_encoder=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"backbone\.language_model: .* no weights"):
        load_language(replace(backbone, language_model=str(tmp_path)))


def test_an_adapter_of_another_language_model_is_refused(backbone: BackboneConfig, tmp_path: Path) -> None:
    payload = torch.load(backbone.adapter, weights_only=True)
    payload["model"]["llama.layers.9.attention.wq.bias"] = torch.zeros(128)
    torch.save(payload, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"backbone\.adapter='.*other\.pth' does not fit"):
        load_language(replace(backbone, adapter=str(tmp_path / "other.pth")))


def test_layers_that_the_language_model_lacks_are_refused() -> None:
    for layers in ((-1,), (0, 4), (-5,)):
        check_layers(M3AdapterConfig(8, 2, layers=layers), 4)
    with pytest.raises(UserError, match=r"m3adapter\.layers=\[-1, 99\]: the language model has 4 layers: .* -5 to 4"):
        check_layers(M3AdapterConfig(8, 2, layers=(-1, 99)), 4)
