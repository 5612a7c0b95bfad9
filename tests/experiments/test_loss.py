"""The loss: equal to plain cross entropy however it is computed, and blind to what is unscored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments import loss

WIDTH, POSITIONS = 8, 50
LARGE = loss.LARGE_VOCABULARY


def problem(vocab_size: int, bias: bool = True) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(POSITIONS, WIDTH, dtype=torch.float64, requires_grad=True)
    readout = nn.Linear(WIDTH, vocab_size, bias=bias, dtype=torch.float64)
    return features, readout, torch.randint(vocab_size, (POSITIONS,))


def with_gradients(value: Tensor, features: Tensor, readout: nn.Linear) -> list[Tensor]:
    return [value, *torch.autograd.grad(value, [features, *readout.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocab_size", [16, LARGE])
def test_value_and_gradients_are_those_of_plain_cross_entropy(vocab_size: int, smoothing: float, bias: bool) -> None:
    features, readout, labels = problem(vocab_size, bias)
    plain = functional.cross_entropy(readout(features), labels, label_smoothing=smoothing)
    ours = loss.cross_entropy(features, readout, labels, smoothing)
    pairs = zip(with_gradients(ours, features, readout), with_gradients(plain, features, readout), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_loop_for_torch_without_a_chunked_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 has no linear_cross_entropy; the loop must then run in several chunks."""
    monkeypatch.delattr(functional, "linear_cross_entropy", raising=False)
    monkeypatch.setattr(loss, "CHUNK", 16)
    features, readout, labels = problem(LARGE)
    assert loss.method(LARGE) == "checkpointed_chunks"
    expected = functional.cross_entropy(readout(features), labels)
    pairs = zip(
        with_gradients(loss.cross_entropy(features, readout, labels), features, readout),
        with_gradients(expected, features, readout),
        strict=True,
    )
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def saved_bytes(features: Tensor, readout: nn.Linear, labels: Tensor) -> int:
    """Bytes that the loss keeps for its backward pass."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss.cross_entropy(features, readout, labels, 0.1)
    return sum(storage.nbytes() for storage in storages.values())


def test_large_vocabularies_keep_no_logits() -> None:
    features, readout, labels = problem(LARGE)
    logits = POSITIONS * LARGE * features.element_size()
    kept = saved_bytes(features, readout, labels)
    assert kept < logits
    assert kept >= features.nbytes


def test_the_method_is_named_by_what_torch_offers() -> None:
    assert loss.method(16) == "cross_entropy"
    assert loss.method(LARGE, 0.1) == "checkpointed_chunks"
    chunked = "linear_cross_entropy" if hasattr(functional, "linear_cross_entropy") else "checkpointed_chunks"
    assert loss.method(LARGE) == chunked


@pytest.mark.parametrize("vocab_size", [16, LARGE])
def test_autocast_leaves_the_loss_in_float32(vocab_size: int) -> None:
    features, readout, labels = problem(vocab_size)
    rows, readout = features.detach().bfloat16(), readout.float()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss.cross_entropy(rows, readout, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, functional.cross_entropy(readout(rows.float()), labels))


def test_scored_positions_are_flat_indices() -> None:
    labels = torch.tensor([[-100, 4], [0, -100]])
    assert loss.scored_positions(labels).tolist() == [1, 2]


def test_predictions_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, readout, _ = problem(16)
    monkeypatch.setattr(loss, "CHUNK", 7)
    assert torch.equal(loss.predictions(features, readout), readout(features).argmax(-1))
