"""One step of the scan, against the scan."""

from __future__ import annotations

import pytest
import torch
from scans import Case
from torch import Tensor

import kernels

TIMED = ("u", "delta", "B", "C", "z")


def step(tensors: dict[str, Tensor], t: int, state: Tensor, update=kernels.selective_state_update, **options):
    """The update with what the scan's arguments hold at step t."""
    at = {name: tensor[..., t] if name in TIMED else tensor for name, tensor in tensors.items()}
    return update(
        *(state, at["u"], at["delta"], at["A"], at["B"], at["C"]),
        *(at.get("D"), at.get("z"), at.get("delta_bias"), "delta_bias" in at),
        **options,
    )


@pytest.mark.parametrize("case", [Case(6), Case(6, options=False, groups_B=1, groups_C=4)])
def test_steps_are_the_scan(case: Case) -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in case.draw().items()}
    state = tensors.get("initial_state", torch.zeros(2, 20, 5, dtype=torch.float64))
    outputs = []
    for t in range(case.length):
        out, state = step(tensors, t, state)
        outputs.append(out)
    stepped = torch.stack(outputs, -1), state
    softplus = "delta_bias" in tensors
    scanned = kernels.selective_scan(**tensors, delta_softplus=softplus, return_last_state=True)
    torch.testing.assert_close(stepped, scanned)
    leaves = list(tensors.values())
    gradients = [torch.autograd.grad(out.sum() + last.sum(), leaves) for out, last in (stepped, scanned)]
    torch.testing.assert_close(*gradients)


def test_gradcheck() -> None:
    tensors = {k: v.requires_grad_() for k, v in Case(1, channels=2, states=2).draw().items()}
    names = list(tensors)

    def function(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, arguments, strict=True))
        return step(given, 0, given["initial_state"])

    assert torch.autograd.gradcheck(function, list(tensors.values()))
    assert torch.autograd.gradgradcheck(function, list(tensors.values()))


def test_rows_without_groups() -> None:
    tensors = Case(1, groups_B=1, groups_C=1).draw()
    state = tensors["initial_state"]
    grouped = step(tensors, 0, state)
    plain = step(tensors | {"B": tensors["B"][:, 0], "C": tensors["C"][:, 0]}, 0, state)
    assert all(map(torch.equal, grouped, plain))


def test_the_old_state_is_not_changed() -> None:
    tensors = Case(1).draw()
    before = tensors["initial_state"].clone()
    step(tensors, 0, tensors["initial_state"])
    assert torch.equal(tensors["initial_state"], before)


def test_in_place_form_writes_the_state() -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in Case(1).draw().items()}
    out, new = step(tensors, 0, tensors["initial_state"])
    state = tensors["initial_state"].detach().clone()
    out_in_place = step(tensors, 0, state, kernels.selective_state_update_)
    assert torch.equal(out_in_place, out)
    assert torch.equal(state, new)
    assert not out_in_place.requires_grad


def test_dtypes_of_state_and_input_are_kept() -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in Case(1).draw().items()}
    out, new = step(tensors, 0, tensors["initial_state"].float())
    assert (out.dtype, new.dtype) == (torch.bfloat16, torch.float32)
    out, new = step(tensors, 0, tensors["initial_state"])
    assert (out.dtype, new.dtype) == (torch.bfloat16, torch.bfloat16)


def test_compiles_as_one_graph() -> None:
    tensors = Case(1).draw()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(
        map(torch.equal, compiled(tensors, 0, tensors["initial_state"]), step(tensors, 0, tensors["initial_state"]))
    )


def test_refuses_what_does_not_fit() -> None:
    tensors = Case(1).draw()
    state = tensors["initial_state"]
    with pytest.raises(ValueError, match=r"expected x of shape \(B, D\) = \(2, 20\), got \(2, 19\)"):
        step(tensors | {"u": tensors["u"][:, 1:]}, 0, state)
    with pytest.raises(ValueError, match="expected state of shape"):
        step(tensors, 0, state[0])
    with pytest.raises(ValueError, match="number of groups that divides D = 20, got 3"):
        step(tensors | {"B": tensors["B"][:, :1].expand(-1, 3, -1, -1)}, 0, state)
