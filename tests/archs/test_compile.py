"""torch.compile trains each architecture as eager execution does: operators, fake kernels and autograd trace through.

The backend runs the traced graphs with eager kernels: what a code generator makes of them is torch's own affair.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import ragged
from variants import TINY, VOCABULARY, build

import archs


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    yield
    torch._dynamo.reset()


def trained(backbone: archs.Backbone, run: torch.nn.Module) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter, of a batch as training has it: no padding, no mask."""
    source = ragged(6, 6, vocabulary=VOCABULARY)
    target = ragged(4, 4, vocabulary=VOCABULARY, seed=1).ids
    backbone.zero_grad()
    logits = run(source, target)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    gradients = {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("name", archs.names())
def test_compiled_training_is_eager_training(name):
    backbone = build(name, TINY).train()
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    # Not by default: there torch's GRU and LSTM break the graph and stay eager.
    with torch._dynamo.config.patch(allow_rnn=True):
        got = trained(backbone, compiled)
    torch.testing.assert_close(got, trained(backbone, backbone), rtol=1e-5, atol=1e-6)
