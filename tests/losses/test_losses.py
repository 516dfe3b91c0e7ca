from __future__ import annotations

import math

import pytest
import torch

from m2chat.losses import align_loss, ddpm_loss, text_loss

TRUE, SOME, NONE = (torch.tensor(values) for values in ([True, True], [True, False], [False, False]))


def test_align_squares_both_terms_and_averages_each_over_its_elements() -> None:
    h, e = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    p, pooled = torch.zeros(2, 5), torch.full((2, 5), 3.0)
    assert align_loss(h, e, p, pooled, TRUE).item() == pytest.approx(4 + 9)
    assert align_loss(h, e, None, None, TRUE).item() == pytest.approx(4)
    assert align_loss(h, -e, p, -pooled, TRUE).item() == pytest.approx(4 + 9), "no term may fall without bound"


@pytest.mark.parametrize("loss", ["align", "ddpm"])
def test_only_samples_with_a_picture_count(loss: str) -> None:
    error = torch.stack([torch.full((3, 4), 2.0), torch.full((3, 4), 100.0)])
    zero = torch.zeros_like(error)

    def of(mask: torch.Tensor, prediction: torch.Tensor = error) -> torch.Tensor:
        if loss == "align":
            return align_loss(prediction, zero, None, None, mask)
        return ddpm_loss(prediction, zero, mask)

    assert of(SOME).item() == pytest.approx(4) and of(TRUE).item() == pytest.approx((4 + 10_000) / 2)
    prediction = error.clone().requires_grad_()
    nothing = of(NONE, prediction)
    nothing.backward()
    assert nothing.item() == 0 and prediction.grad is not None and not prediction.grad.any()


def test_low_precision_is_summed_in_full_precision() -> None:
    value = ddpm_loss(torch.full((1, 1000), 300.0).half(), torch.zeros(1, 1000).half(), torch.tensor([True]))
    assert value.dtype == torch.float32 and value.item() == pytest.approx(90_000)


def test_text_loss_is_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert text_loss(logits, torch.tensor([1, 0])).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_text_loss_over_replies_counts_each_reply_the_same() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 5), torch.randint(5, (7,))
    replies = torch.tensor([0, 0, 0, 0, 0, 3, 3])  # the others have nothing scored
    expected = (text_loss(logits[:5], labels[:5]) + text_loss(logits[5:], labels[5:])) / 2
    torch.testing.assert_close(text_loss(logits, labels, replies), expected)
