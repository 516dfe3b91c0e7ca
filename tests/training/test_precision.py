"""How a model is kept for training: frozen networks in bf16 under bf16-mixed, activations computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2chat.errors import UserError


@pytest.mark.parametrize("stage", ["align", "m3ft"])
def test_what_is_frozen_is_kept_in_bf16_and_what_trains_in_fp32(micro: Any, stage: str) -> None:
    module = micro.module(stage)
    module.configure_model()
    assert {parameter.dtype for parameter in module.model.parameters()} == {torch.float32}
    assert module.prepare_precision(module.model, "bf16-mixed") == torch.bfloat16
    exact = ("decoder.vae.encoder.", "decoder.vae.quant_conv.")
    for name, parameter in module.model.named_parameters():
        whole = parameter.requires_grad or name.startswith(exact)
        assert parameter.dtype == (torch.float32 if whole else torch.bfloat16), name
    assert module.model.llama.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["align", "m3ft"])
def test_activations_computed_again_are_the_same(
    micro: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    calls: list[bool] = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["use_reentrant"])
        return original(*args, **kwargs)

    plain = micro.fit(stage, tmp_path, 2).losses
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    again = micro.fit(stage, tmp_path, 2, gradient_checkpointing=True).losses
    assert calls and not any(calls)  # never reentrant
    for ours, theirs in zip(again, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["align", "m3ft"])
@pytest.mark.parametrize(("steps", "batch"), [(2, 2), pytest.param(10, 6, marks=pytest.mark.slow)])
def test_losses_in_bf16_are_those_of_fp32_but_for_rounding(
    micro: Any, tmp_path: Path, stage: str, steps: int, batch: int
) -> None:
    exact, rounded = (
        micro.fit(stage, tmp_path, steps, batch_size=batch, precision=kind).losses for kind in ("32-true", "bf16-mixed")
    )
    assert len(rounded) == steps and rounded != exact
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours == pytest.approx(theirs, rel=2**-7)  # a rounding to bf16 is 2**-9 at most, a loss has several


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_what_is_trained_is_not_kept_in_half_precision(micro: Any, tmp_path: Path, precision: str) -> None:
    with pytest.raises(UserError, match=f"trainer.precision={precision}.*bf16-mixed"):
        micro.fit("align", tmp_path, 1, precision=precision)
