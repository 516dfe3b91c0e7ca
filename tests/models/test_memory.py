"""The memory modes on the micro model: what they change, and that the replies stay good."""

from __future__ import annotations

import copy

import pytest
import torch

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.memory import (
    MODES,
    Offload,
    fit_to_memory,
    int4_group,
    lower_parameters,
    offload_parts,
    options_of,
    quantize_language,
    quantized_linears,
)
from m2chat.planning.inference import half_bytes, saved_bytes, stored_bytes
from toys import picture


@pytest.fixture
def model(micro_model: M2ChatModel) -> M2ChatModel:
    return copy.deepcopy(micro_model)


def test_high_is_exact(micro_model: M2ChatModel, model: M2ChatModel, batch: Batch) -> None:
    found = picture(fit_to_memory(model, "high", "cpu"), batch)
    assert torch.allclose(found, picture(micro_model, batch), atol=5e-6)  # pictures are decoded one by one


def test_bf16_keeps_the_rotations_and_the_picture(micro_model: M2ChatModel, model: M2ChatModel, batch: Batch) -> None:
    fit_to_memory(model, "high", "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.llama.model.rotary_emb.inv_freq.dtype == torch.float32
    error = (picture(model, batch).float() - picture(micro_model, batch)).abs()
    assert error.mean() < 0.05


def test_parts_take_turns(micro_model: M2ChatModel, model: M2ChatModel, batch: Batch) -> None:
    turns: list[str | None] = []

    class Watched(Offload):
        def bring(self, name: str) -> None:
            super().bring(name)
            if turns[-1:] != [self.resident]:
                turns.append(self.resident)

    Watched(offload_parts(model), torch.device("cpu"))
    found = picture(model, batch)
    assert turns == ["vision", "language", "unet", "vae"]
    assert torch.equal(found, picture(micro_model, batch))


def test_previews_move_their_vae_first(model: M2ChatModel) -> None:
    decoder = model.decoder
    decoder.preview_vae = copy.deepcopy(decoder.vae)
    offload = Offload(offload_parts(model), torch.device("cpu"))
    residents = []
    for child in decoder.preview_vae.children():
        child.register_forward_pre_hook(lambda *_: residents.append(offload.resident))
    offload.bring("unet")
    decoder.decode_latents(torch.randn(1, 8, 8, 8), preview=True)
    assert residents == ["preview", "preview"]  # post_quant_conv and decoder


def test_what_waits_is_not_on_the_device(model: M2ChatModel) -> None:
    offload = Offload(offload_parts(model), torch.device("meta"))  # a device that differs from where parts wait
    offload.bring("unet")
    places = {name: {p.device.type for m in modules for p in m.parameters()} for name, (modules, _) in
              offload_parts(model).items()}  # fmt: skip
    assert places.pop("unet") == {"meta"} and set.union(*places.values()) == {"cpu"}


def test_tiles_are_half_a_picture(micro_model: M2ChatModel, model: M2ChatModel) -> None:
    vae = model.decoder.vae
    vae.enable_tiling()
    latents = torch.randn(1, 8, 8, 8)
    whole = micro_model.decoder.decode_latents(latents)
    assert torch.equal(model.decoder.decode_latents(latents), whole)  # diffusers' own tiles are no smaller
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 4
    tiled = model.decoder.decode_latents(latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


def test_low_is_exact_on_a_cpu_and_cuts_the_picture(
    micro_model: M2ChatModel, model: M2ChatModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    fit_to_memory(model, "low", "cpu")
    with torch.no_grad():
        ours, theirs = (m.read(batch.input_ids, batch.context_pixels)[0] for m in (model, micro_model))
    assert torch.equal(ours, theirs) and model.decoder.vae.use_tiling


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.25)])
def test_fewer_bits(micro_model: M2ChatModel, model: M2ChatModel, batch: Batch, bits: int, tolerance: float) -> None:
    pytest.importorskip("torchao", reason="pip install 'm2chat[memory]'")
    quantize_language(model.requires_grad_(False), bits, torch.device("cpu"))
    with torch.no_grad():
        found, expected = (m.read(batch.input_ids, batch.context_pixels)[0] for m in (model, micro_model))
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < tolerance
    assert picture(model, batch).isfinite().all()


def test_int8_takes_the_bytes_that_the_plan_says(model: M2ChatModel) -> None:
    pytest.importorskip("torchao", reason="pip install 'm2chat[memory]'")
    fit_to_memory(model, "balanced", "cpu")
    for linear in quantized_linears(model).values():
        held = [value for value in vars(linear.weight).values() if isinstance(value, torch.Tensor)]
        assert sum(tensor.nbytes for tensor in held) == stored_bytes(linear, 8)


def test_fewer_bits_need_torchao(model: M2ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"pip install 'm2chat\[memory\]', or choose --memory low, which needs none"):
        fit_to_memory(model, "balanced", "cpu")
    with pytest.raises(UserError, match=r"pip install 'm2chat\[memory\]', or choose --memory high"):
        options_of("low", "cuda")


def test_an_unknown_mode_is_refused(model: M2ChatModel) -> None:
    with pytest.raises(UserError, match="--memory tiny: choose one of high, balanced, low"):
        fit_to_memory(model, "tiny", "cpu")  # type: ignore[arg-type]


def test_groups_divide_the_rows() -> None:
    assert (int4_group(4096), int4_group(11008), int4_group(344), int4_group(7)) == (128, 128, 8, 0)
    assert set(MODES) == {"low", "balanced", "high"}


def test_fewer_bits_save_what_they_should(micro_model: M2ChatModel) -> None:
    half = half_bytes(*quantized_linears(micro_model).values())
    assert 0 < saved_bytes(micro_model, 8) < half / 2 < saved_bytes(micro_model, 4) < half
    assert saved_bytes(micro_model, 16) == 0


def test_only_parameters_are_lowered() -> None:
    module = torch.nn.BatchNorm1d(3)
    lower_parameters(module.parameters(), torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16 and module.running_mean is not None
    assert module.running_mean.dtype == torch.float32
