"""What a training step does not do: wait for a device, compute what is not needed, or differ when it is made faster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from m2chat.batch import Batch
from m2chat.models import compiled
from m2chat.training.config import OptimConfig
from m2chat.training.optim import adamw


class Waits(TorchDispatchMode):
    """Counts the operations whose result a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Counts."""
        by_number = func.namespace == "aten" and func._schema.name.split("::")[1] in (
            "_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "is_nonzero",
        )  # fmt: skip
        by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_number or by_mask:
            self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def first_batch(micro: Any, stage: str, **settings: Any) -> Batch:
    return next(iter(micro.data(stage, batch_size=8, **settings).train_dataloader())).ready()


def step(module: Any, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step."""
    module.zero_grad(set_to_none=True)
    losses = module.losses(batch)
    loss = (losses[0] if isinstance(losses, tuple) else losses)["loss"]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", ["align", "m3ft"])
def test_a_step_waits_for_no_answer_of_the_device(micro: Any, stage: str) -> None:
    options = {"read_parts": 3, "text_mean": "replies", "ddpm_draws": 2} if stage == "m3ft" else {}
    module, batch = micro.module(stage, ddpm_samples=4, **options), first_batch(micro, stage)
    module.configure_model()
    step(module, batch)
    with Waits() as waits:
        losses = module.losses(batch)
        (losses[0] if stage == "m3ft" else losses)["loss"].backward()
    assert waits.count == {}


def test_an_update_in_one_kernel_is_the_same(micro: Any) -> None:
    parameters = []
    for fused in (None, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(7, 5)
        optimizer = adamw([{"params": layer.parameters(), "weight_decay": 0.1, "lr": 0.01}],
                          OptimConfig(fused=fused), "bf16-mixed")  # fmt: skip
        assert bool(optimizer.defaults["fused"]) is bool(fused)
        for number in range(5):
            layer(torch.full((3, 7), float(number))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        parameters.append(layer.weight.detach())
    torch.testing.assert_close(*parameters, rtol=1e-6, atol=1e-7)


def test_gradients_are_clipped_under_bf16_though_the_update_is_fused(micro: Any, tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-3, schedule="step", drop_every_epochs=1, fused=True)
    run = micro.fit("align", tmp_path, 2, precision="bf16-mixed", optim=optim, ddpm_samples=1)
    assert run.trainer.optimizers[0].defaults["fused"] and all(row["train/loss"] > 0 for row in run.losses)


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.slow) for name in ("eager", "inductor")]
)  # the first traces and computes as before
def test_a_compiled_step_has_the_same_losses_and_gradients(
    micro: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, batch = [], first_batch(micro, "m3ft")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    for torch_compile in (False, True):
        module = micro.module("m3ft", ddpm_samples=2, torch_compile=torch_compile)
        module.configure_model()
        modules.append(module)
    assert list(modules[0].state_dict()) == list(modules[1].state_dict())
    assert modules[1].model.decoder.predicting is not None
    (loss, gradients), (own, own_gradients) = (step(module, batch) for module in modules)
    assert own == pytest.approx(loss, rel=1e-5) and own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    torch.compiler.reset()
