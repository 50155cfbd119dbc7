"""Against torch's own cross entropy: values, gradients, rows that do not count, and scores a softmax cannot hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tasks.losses.cross_entropy import IGNORED, summed_cross_entropy


def both(logits: torch.Tensor, targets: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(loss, gradient of three times the loss) of torch and of ours."""
    found = []
    for of in (
        lambda x: F.cross_entropy(x.float(), targets, reduction="sum"),
        lambda x: summed_cross_entropy(x, targets),
    ):
        given = logits.clone().requires_grad_()
        loss = of(given)
        (3 * loss).backward()  # type: ignore[no-untyped-call]
        assert given.grad is not None
        found.append((loss.detach(), given.grad))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignored", [0, 3, 7])
def test_loss_and_gradient_are_those_of_torch(dtype: torch.dtype, ignored: int) -> None:
    torch.manual_seed(0)
    logits, targets = (torch.randn(7, 11) * 5).to(dtype), torch.randint(0, 11, (7,))
    targets[:ignored] = IGNORED
    (loss, gradient), (ours, our_gradient) = both(logits, targets)
    torch.testing.assert_close(ours, loss)
    assert our_gradient.dtype == dtype
    torch.testing.assert_close(our_gradient, gradient)
    assert not our_gradient[:ignored].any()


def test_scores_far_apart_stay_finite() -> None:
    """exp(-1000) is zero in fp32: a logarithm taken after the softmax would be infinite."""
    logits, targets = torch.tensor([[1000.0, 0.0, -1000.0]]), torch.tensor([2])
    (loss, gradient), (ours, our_gradient) = both(logits, targets)
    assert float(ours) == float(loss) == 2000.0
    torch.testing.assert_close(our_gradient, gradient)


def test_the_logits_are_left_as_they_were() -> None:
    logits, targets = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 3])
    before = logits.detach().clone()
    summed_cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(logits.detach(), before)
