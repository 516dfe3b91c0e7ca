"""Weights that stay in their files: the same numbers as lifted ones, without their memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import large_llama
from m2chat.batch import Batch
from m2chat.host_memory import anonymous_bytes
from m2chat.integrity import not_verified
from m2chat.models import mapped
from m2chat.models.adapter_file import in_halves, permute
from m2chat.models.build import load_language
from m2chat.models.config import BackboneConfig, NewAdapterConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.mapped import is_mapped, place, reordered, replace_parameters, settle
from m2chat.models.memory import Offload, lower_parameters, offload_parts
from toys import picture

MICRO = Path(__file__).parents[2] / "data" / "micro"


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mapped, "_SMALL", 64)
    yield


@pytest.fixture
def halved(micro_model: M2ChatModel) -> M2ChatModel:
    """The micro model with its frozen weights in the halves of its files, lifted as they are used."""
    model = copy.deepcopy(micro_model)
    frozen = {id(p) for part in (model.llama, model.clip, model.decoder) for p in part.parameters()}

    def half(parameter: nn.Parameter) -> torch.Tensor | None:
        value = parameter.data.half()
        exact = id(parameter) in frozen and torch.equal(value.float(), parameter.data)
        return mapped.mapped(value, torch.float32) if exact else None

    replace_parameters(model, half)
    assert sum(is_mapped(p) for p in model.parameters()) > 200
    return model


def test_pictures_are_the_same_bits(micro_model: M2ChatModel, halved: M2ChatModel, batch: Batch) -> None:
    whole = picture(micro_model, batch)
    assert torch.equal(picture(halved, batch), whole)
    settle(halved)  # 7 MB are small
    assert not any(is_mapped(p) for p in halved.parameters())
    assert torch.equal(picture(halved, batch), whole)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bits(
    micro_model: M2ChatModel, halved: M2ChatModel, precision: torch.dtype, batch: Batch
) -> None:
    found = []
    for model in (halved, copy.deepcopy(micro_model)):
        model.requires_grad_(False)
        lower_parameters(model.decoder.parameters(), precision)
        text = torch.ones(2, model.decoder.queries, model.decoder.sequence_width, requires_grad=True)
        pooled = torch.ones(2, model.decoder.pooled_width)
        torch.manual_seed(0)
        noisy = torch.randn(2, int(model.decoder.unet.config.in_channels), 8, 8)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            model.decoder.predict(
                noisy, torch.tensor(500), text, pooled, batch.time_ids
            ).float().square().mean().backward()
        assert text.grad is not None
        found.append(text.grad)
    assert torch.equal(*found) and found[0].abs().sum() > 0


def test_placing_keeps_files_on_a_cpu_and_leaves_them_elsewhere(halved: M2ChatModel) -> None:
    table = halved.llama.model.embed_tokens
    halved.llama.lm_head.weight = table.weight  # tied, as in small language models
    before = [p.source.data_ptr() for p in halved.parameters() if is_mapped(p)]
    place(halved, "cpu", torch.bfloat16)
    kept = [p for p in halved.parameters() if is_mapped(p)]
    assert [p.source.data_ptr() for p in kept] == before and {p.dtype for p in halved.parameters()} == {torch.bfloat16}
    assert halved.llama.model.rotary_emb.inv_freq.dtype == torch.float32
    assert halved.llama.lm_head.weight is table.weight
    place(halved, "meta")
    assert {type(p.data) for p in halved.parameters()} == {torch.Tensor}
    assert {p.device.type for p in halved.parameters()} == {"meta"} and halved.llama.lm_head.weight is table.weight


def test_rows_in_another_order_wait_too() -> None:
    rows = torch.randn(64, 48).half()
    lazy = reordered(in_halves(rows, 4), rows.shape)
    assert is_mapped(lazy) and lazy.source.data_ptr() == rows.data_ptr()
    assert torch.equal(lazy, permute(rows, 4)) and torch.equal(lazy.reshape(-1)[::7], permute(rows, 4).reshape(-1)[::7])


def test_what_lies_in_a_file_is_not_changed() -> None:
    layer = nn.Linear(32, 32)
    layer.weight = nn.Parameter(mapped.mapped(torch.randn(32, 32).half(), torch.float32), requires_grad=False)
    with pytest.raises(RuntimeError, match="would change weights that are mapped from a file"):
        layer.weight.data.add_(1)
    weight = layer.weight
    layer.weight.data = torch.ones(32, 32)  # as `Module.to` puts numbers of another device in its place
    assert type(weight) is nn.Parameter and layer.weight is weight and weight.add(1).sum() == 2048


def test_parts_take_turns_from_their_files(halved: M2ChatModel) -> None:
    offload = Offload(offload_parts(halved), torch.device("meta"))
    before = dict(halved.named_parameters())
    offload.bring("language")
    assert {p.device.type for p in halved.llama.parameters()} == {"meta"}
    assert {p.device.type for p in halved.decoder.parameters()} == {"cpu"}
    offload.bring("unet")
    after = dict(halved.named_parameters())
    back = {name for name, p in after.items() if p is before[name] and p.device.type == "cpu"}
    assert back == {name for name in after if not name.startswith("decoder.unet.")}


def test_a_large_language_model_takes_no_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SETTLED", 0)
    folder = large_llama(tmp_path / "llama", 1024, 24)
    assert (folder / "model.safetensors").stat().st_size > 800e6
    new = NewAdapterConfig(prompts=2, layers=1, visual_blocks=1, visual_heads=2)
    backbone = BackboneConfig(str(folder), "new", str(MICRO / "clip"), "", 8, new_adapter=new)
    before = anonymous()
    with not_verified():  # a checksum reads every byte
        llama, _ = load_language(backbone)
    grown = anonymous() - before
    assert sum(is_mapped(p) for p in llama.parameters()) == 24 * 7 + 2
    assert grown < 100e6
    with torch.no_grad():
        assert llama(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, llama.config.vocab_size + 2)
    assert anonymous() - before < 150e6


def test_what_is_dropped_leaves_no_holes(halved: M2ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SETTLED", 0)
    settle(halved)
    for _ in range(2):
        torch.ones(1 << 22)  # after which glibc by itself would cut blocks of so many bytes from one piece
    before = anonymous()
    blocks = [torch.ones(1 << 18) for _ in range(200)]
    kept = blocks[::2]
    del blocks
    assert anonymous() - before < 1.2 * sum(block.nbytes for block in kept)


def anonymous() -> int:
    """Bytes of memory that this process has to itself."""
    found = anonymous_bytes()
    assert found is not None
    return found
