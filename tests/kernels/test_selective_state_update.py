"""One step of the scan on every backend, against the scan."""

from __future__ import annotations

import pytest
import torch
from contestants import backends
from scans import Case, as_float32
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels.selective_state_update import cpu

BACKENDS = backends("selective_state_update")
FAST = backends("selective_state_update", but="reference")
CASES = {
    "all options": Case(1),
    "lanes filled": Case(1, channels=66, states=32, groups_B=1, groups_C=1),
    "no options": Case(1, options=False, groups_B=1, groups_C=4),
    "more than one task": Case(1, channels=300, states=3, rows=3),
}
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


def results(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """out, the new state, and the gradient of every tensor."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    states = Case(1, channels=tensors["A"].shape[0], states=tensors["A"].shape[1], rows=len(tensors["u"])).draw()
    state = leaves.setdefault("initial_state", states["initial_state"].to(tensors["u"].dtype).requires_grad_())
    out, new = step(leaves, 0, state, backend=backend)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in (out, new)]
    gradients = torch.autograd.grad([out, new], list(leaves.values()), cotangents)
    return {"out": out.detach(), "new": new.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str, backend: str) -> None:
    tensors = as_float32(CASES[case])
    with nan_in_fresh_memory():
        actual = results(tensors, backend)
    plain = results(tensors, "reference")
    exact = results({name: tensor.double() for name, tensor in tensors.items()}, "reference")
    assert_all_as_good(actual, actual.values(), plain.values(), exact.values())


@pytest.mark.parametrize("backend", FAST)
def test_one_tensor_given_twice_has_the_gradients_of_both(backend: str) -> None:
    tensors = as_float32(Case(1))
    state, matrix = tensors["initial_state"], tensors["B"].requires_grad_()
    outputs = [step(tensors | {"C": matrix}, 0, state, backend=name)[0] for name in (backend, "reference")]
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), matrix) for out in outputs))


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


LAYOUTS = {
    "contiguous": lambda state: state.clone(),
    "states apart": lambda state: state.mT.contiguous().mT,
    "part of a larger one": lambda state: torch.cat([state, state], 2)[:, :, : state.shape[2]],
    "rows apart": lambda state: torch.stack([state, state], 1)[:, 1],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_form_writes_the_state_where_it_is(layout: str, dtype: torch.dtype, backend: str) -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(1, states=16)).items()}
    state = LAYOUTS[layout](tensors["initial_state"].detach().to(dtype))
    address = state.data_ptr()
    expected = step(tensors, 0, state.clone(), backend=backend)
    out = step(tensors, 0, state, kernels.selective_state_update_, backend=backend)
    assert torch.equal(out, expected[0])
    assert torch.equal(state, expected[1])
    assert state.data_ptr() == address
    assert not out.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_floats_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    """A step that adds 0 to every number there is, denormals, infinities and NaN among them, leaves it as it is."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(16, 256, 16)
    if dtype == torch.bfloat16:  # a float too small to be normal is 0 here
        numbers = numbers.where(numbers.float().abs() >= 2.0**-126, 0.0)
    zeros, A, B = torch.zeros(16, 256), torch.zeros(256, 16), torch.ones(16, 16)
    _, new = kernels.selective_state_update(numbers, zeros, zeros, A, B, B, backend="cpu")
    torch.testing.assert_close(new, numbers + 0.0, rtol=0, atol=0, equal_nan=True)
    inputs = torch.rand(16, 256, generator=torch.Generator().manual_seed(0)) * 2.0 ** -torch.arange(16.0)[:, None]
    _, new = kernels.selective_state_update(torch.zeros_like(numbers), inputs, zeros + 1, A, B, B, backend="cpu")
    assert torch.equal(new, inputs[..., None].expand(-1, -1, 16).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_notices_that_a_state_it_kept_was_written(backend: str) -> None:
    tensors = as_float32(Case(1))
    state = tensors["initial_state"]
    tensors["delta"].requires_grad_()
    out, _ = step(tensors, 0, state, backend=backend)
    step(tensors, 0, state, kernels.selective_state_update_, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_state_whose_elements_share_memory_is_not_written() -> None:
    tensors = as_float32(Case(1))
    expanded = tensors["initial_state"][:1].expand(2, -1, -1)
    with pytest.raises(ValueError, match="memory of its own for each element"):
        step(tensors, 0, expanded, kernels.selective_state_update_)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_masked_step_changes_nothing_and_nan_passes(backend: str) -> None:
    tensors = as_float32(Case(1))
    tensors["delta"] = tensors["delta"].fill_(float("-inf"))
    state = tensors["initial_state"]
    assert torch.equal(step(tensors, 0, state, backend=backend)[1], state)
    tensors = as_float32(Case(1))
    tensors["delta"][0, 3] = float("nan")
    out, new = step(tensors, 0, state, backend=backend)
    assert out.isnan().nonzero().tolist() == [[0, 3]]
    assert int(new.isnan().sum()) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_of_state_and_input_are_kept(backend: str) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in Case(1).draw().items()}
    out, new = step(tensors, 0, tensors["initial_state"].float(), backend=backend)
    assert (out.dtype, new.dtype) == (torch.bfloat16, torch.float32)
    out, new = step(tensors, 0, tensors["initial_state"], backend=backend)
    assert (out.dtype, new.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(1)).items()}
    state = leaves["initial_state"]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    values = [run(leaves, 0, state, backend=backend) for run in (compiled, step)]
    assert all(map(torch.equal, *values))
    gradients = [torch.autograd.grad(out.sum() + new.sum(), list(leaves.values())) for out, new in values]
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_form_compiles_as_one_graph(backend: str) -> None:
    tensors = as_float32(Case(1))
    states = [tensors["initial_state"].clone() for _ in range(2)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    outputs = [
        run(tensors, 0, state, kernels.selective_state_update_, backend=backend)
        for run, state in zip((compiled, step), states, strict=True)
    ]
    assert torch.equal(*outputs)
    assert torch.equal(*states)
    torch._dynamo.reset()


def operands(case: Case) -> list[Tensor | None]:
    """The tensors in the order of the operators."""
    at = {name: tensor[..., 0] if name in TIMED else tensor for name, tensor in as_float32(case).items()}
    state = at.get("initial_state", torch.zeros(case.rows, case.channels, case.states))
    return [state, *(at.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))]


@pytest.mark.parametrize("case", [Case(1), Case(1, options=False)])
def test_opcheck(case: Case) -> None:
    tensors = operands(case)
    assert cpu.why_not(None, None) is None
    torch.library.opcheck(cpu.update, (*tensors, case.options))
    out, new = cpu.update(*tensors, case.options)
    torch.library.opcheck(cpu.update_backward, (out, new, *tensors, case.options))
    torch.library.opcheck(cpu.update_, (*tensors, case.options))


def test_fake_tensors_have_the_shapes_and_strides() -> None:
    tensors = as_float32(Case(1))
    real = step(tensors, 0, tensors["initial_state"])
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        fake = step(fakes, 0, fakes["initial_state"])
        written = step(fakes, 0, fakes["initial_state"], kernels.selective_state_update_)
    assert [(f.shape, f.stride(), f.dtype) for f in fake] == [(r.shape, r.stride(), r.dtype) for r in real]
    assert written.shape == real[0].shape


def test_second_derivatives_name_the_reference() -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(1)).items()}
    out, _ = step(leaves, 0, leaves["initial_state"], backend="cpu")
    (gradient,) = torch.autograd.grad(out.sum(), leaves["u"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"selective_state_update.*backend='reference'"):
        gradient.sum().backward()


def test_bits_do_not_depend_on_the_threads() -> None:
    tensors = as_float32(Case(1, channels=600, states=16, groups_B=1, groups_C=1, rows=16))
    expected = step(tensors, 0, tensors["initial_state"], backend="cpu")
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, step(tensors, 0, tensors["initial_state"], backend="cpu"), expected))
    finally:
        torch.set_num_threads(before)


def test_refuses_what_does_not_fit() -> None:
    tensors = Case(1).draw()
    state = tensors["initial_state"]
    with pytest.raises(ValueError, match=r"expected x of shape \(B, D\) = \(2, 20\), got \(2, 19\)"):
        step(tensors | {"u": tensors["u"][:, 1:]}, 0, state)
    with pytest.raises(ValueError, match="expected state of shape"):
        step(tensors, 0, state[0])
    with pytest.raises(ValueError, match="number of groups that divides D = 20, got 3"):
        step(tensors | {"B": tensors["B"][:, :1].expand(-1, 3, -1, -1)}, 0, state)
