"""On a GPU every architecture computes what it computes on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from variants import NAMED, VOCABULARY, build

import archs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


def loss_and_gradients(backbone: archs.Backbone, ids: Tensor) -> list[Tensor]:
    """Of the mean logarithm of what comes next, after half of the tokens."""
    source, target = ids.chunk(2, 1)
    logits = backbone.readout(backbone.features(archs.Tokens(source), target))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    return [loss, *torch.autograd.grad(loss, list(backbone.parameters()), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("length", [20, 600])
@pytest.mark.parametrize("variant", NAMED)
def test_a_training_step(variant: str, length: int) -> None:
    backbone = build(*NAMED[variant]).float()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, length), generator=generator)
    expected = loss_and_gradients(backbone, ids)
    actual = loss_and_gradients(copy.deepcopy(backbone).cuda(), ids.cuda())
    for there, here in zip(actual, expected, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
