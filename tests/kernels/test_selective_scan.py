"""The selective scan: its maths on every backend, against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from scans import NAMES, RESULTS, Case, as_float32, results, scan, truth
from tolerance import assert_all_as_good, assert_as_good, nan_in_fresh_memory

import kernels

LENGTHS = (1, 2, 63, 64, 65, 1000)
FAST = ("chunked", "cpu")
KINDS = {
    "all options": Case(0),
    "bare": Case(0, options=False, groups_B=1, groups_C=1),
    "constant B and C": Case(0, groups_B=0, groups_C=0),
    "channel-last": Case(0, channels=40, states=16, groups_B=1, groups_C=1, channel_last=True),
}


def case(kind: str, length: int) -> Case:
    return Case(**{**vars(KINDS[kind]), "length": length})


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("kind", "length"),
    [(kind, length) for kind in KINDS for length in LENGTHS if length < 1000 or kind == "all options"],
)
def test_values_and_gradients(kind: str, length: int, backend: str) -> None:
    chosen = case(kind, length)
    with nan_in_fresh_memory():
        actual = results(as_float32(chosen), backend)
    assert_all_as_good(RESULTS[: len(actual)], actual, *truth(chosen))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "odd",
    [
        Case(70, channels=300, states=3, groups_B=2, groups_C=2),
        Case(70, groups_B=0, groups_C=2),
        Case(70, groups_B=1, groups_C=0),
        Case(70, groups_B=4, groups_C=10),
        Case(70, channels=33, states=17, groups_B=3, groups_C=1, channel_last=True),
        Case(3, channels=1, states=1, groups_B=1, groups_C=1, rows=1),
    ],
    ids=lambda odd: f"{odd.channels}-{odd.states}-{odd.groups_B}-{odd.groups_C}",
)
def test_odd_shapes(odd: Case, backend: str) -> None:
    actual = results(as_float32(odd), backend)
    assert_all_as_good(RESULTS, actual, *truth(odd))


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_strided_arguments_give_the_same(backend: str) -> None:
    tensors = as_float32(case("all options", 65))
    spread = {name: torch.stack([tensor, tensor + 1], -1)[..., 0] for name, tensor in tensors.items()}
    assert not any(tensor.is_contiguous() for tensor in spread.values())
    for left, right in zip(results(tensors, backend), results(spread, backend), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_expanded_arguments() -> None:
    tensors = as_float32(Case(9, groups_B=1, groups_C=1))
    broadcast = tensors | {"B": tensors["B"][:1].expand(2, -1, -1, -1), "z": tensors["z"][:, :, :1].expand(-1, -1, 9)}
    copied = {name: tensor.contiguous() for name, tensor in broadcast.items()}
    for left, right in zip(results(broadcast, "cpu"), results(copied, "cpu"), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradcheck(backend: str) -> None:
    tensors = {k: v.requires_grad_() for k, v in Case(3, channels=2, states=2, groups_B=1, rows=1).draw().items()}
    assert list(tensors) == [name for name in NAMES if name in tensors]

    def function(*arguments):
        return scan(dict(zip(NAMES, arguments, strict=True)), backend)

    arguments = [tensors[name] for name in NAMES]
    assert torch.autograd.gradcheck(function, arguments)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(function, arguments)


def test_chunked_is_exact_in_float64() -> None:
    tensors = case("all options", 600).draw()
    for left, right in zip(results(tensors, "chunked"), results(tensors, "reference"), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("cut", [1, 64, 70])
def test_scan_in_two_pieces_is_the_scan(cut: int, backend: str) -> None:
    chosen = case("all options", 130)
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(chosen).items()}
    timed = ("u", "delta", "z", "B", "C")
    head = {name: t[..., :cut] if name in timed else t for name, t in leaves.items()}
    tail = {name: t[..., cut:] if name in timed else t for name, t in leaves.items()}
    first, state = scan(head, backend)
    second, last = scan(tail | {"initial_state": state}, backend)
    values = torch.cat([first, second], -1), last
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).float() for v in values]
    gradients = torch.autograd.grad(values, list(leaves.values()), cotangents)
    assert_all_as_good(RESULTS, [*(v.detach() for v in values), *gradients], *truth(chosen))


@pytest.mark.parametrize("backend", FAST)
def test_extreme_step_sizes(backend: str) -> None:
    tensors = as_float32(case("all options", 65))
    extremes = torch.tensor([-math.inf, -1e4, -104.0, -87.5, -30.0, -1e-4, 0.0, 1e-6, 19.99, 20.01, 90.0, 1e4])
    tensors["delta"] = extremes[torch.arange(tensors["delta"].numel()) % len(extremes)].view_as(tensors["delta"])
    actual = results(tensors, backend)
    plain = results(tensors, "reference")
    exact = results({name: tensor.double() for name, tensor in tensors.items()}, "reference")
    assert all(tensor.isfinite().all() for tensor in actual)
    assert_all_as_good(RESULTS, actual, plain, exact)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("channel_last", [False, True])
def test_a_gate_nearly_closed_on_what_is_nearly_too_large(channel_last: bool, backend: str) -> None:
    tensors = as_float32(Case(17, channels=16, groups_B=1, groups_C=1, channel_last=channel_last))
    tensors["D"].fill_(1e37)
    tensors["z"].sub_(80)
    plain, exact = (scan(given, "reference")[0] for given in (tensors, {k: v.double() for k, v in tensors.items()}))
    assert_as_good("out", scan(tensors, backend)[0], plain, exact)
    assert exact.abs().max() > 1


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_minus_infinity_leaves_the_state_exactly(backend: str) -> None:
    tensors = as_float32(case("all options", 80))
    tensors["delta"].fill_(-math.inf)
    _, last, *gradients = results(tensors, backend)
    assert torch.equal(last, tensors["initial_state"])
    assert gradients[NAMES.index("delta")].eq(0).all()


def test_steps_of_minus_infinity_could_be_left_out() -> None:
    tensors = as_float32(case("all options", 80))
    tensors["delta"][..., 5:75] = -math.inf
    timed = ("u", "delta", "z", "B", "C")
    without = {
        name: torch.cat([tensor[..., :5], tensor[..., 75:]], -1) if name in timed else tensor
        for name, tensor in tensors.items()
    }
    out, last = scan(tensors, "cpu")
    out_without, last_without = scan(without, "cpu")
    assert torch.equal(last, last_without)
    assert torch.equal(out[..., 75:], out_without[..., 5:])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", NAMES)
def test_nan_passes_through(name: str, backend: str) -> None:
    tensors = as_float32(case("all options", 65))
    tensors[name].view(-1)[-7] = math.nan
    expected = scan(tensors, "reference")
    assert expected[0].isnan().any()
    assert all(torch.equal(a.isnan(), e.isnan()) for a, e in zip(scan(tensors, backend), expected, strict=True))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_every_nan_is_a_nan(bits: int, backend: str) -> None:
    tensors = as_float32(Case(4))
    tensors["delta"].view(torch.int32).fill_(bits - (bits >> 31 << 32))
    out, last = scan(tensors, backend)
    assert out.isnan().all()
    assert last.isnan().all()


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_shorter_floats_are_computed_in_float32(backend: str) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in case("all options", 20).draw().items()}
    out, last = scan(tensors, backend)
    expected, expected_last = scan({name: tensor.float() for name, tensor in tensors.items()}, backend)
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(last, expected_last)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_autocast_changes_nothing(backend: str) -> None:
    tensors = as_float32(Case(20))
    expected = scan(tensors, backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = scan(tensors, backend)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("backend", FAST)
def test_saves_no_state_per_step(backend: str) -> None:
    tensors = {name: t.requires_grad_() for name, t in as_float32(Case(512, states=32)).items()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scan(tensors, backend)
    assert sum(saved.values()) < tensors["u"].nbytes * 32 / 2


def test_without_options_out_alone() -> None:
    tensors = as_float32(Case(7, options=False))
    out = kernels.selective_scan(**tensors)
    assert torch.equal(out, scan(tensors, "auto")[0])


BAD = {
    "delta": ("delta", lambda t: t[..., :-1], r"expected delta of shape \(B, D, L\) = \(2, 20, 7\), got \(2, 20, 6\)"),
    "A": ("A", lambda t: t[:-1], "expected A of shape"),
    "complex A": ("A", lambda t: t + 0j, "expected a real A"),
    "B": ("B", lambda t: t[..., :-1], "expected B of shape"),
    "constant C": ("C", lambda t: t[0, 0], r"expected C of shape \(D, N\)"),
    "groups": ("B", lambda t: t[:, :1].expand(-1, 3, -1, -1), "number of groups that divides D = 20, got 3"),
    "initial_state": ("initial_state", lambda t: t[0], "expected initial_state of shape"),
    "u": ("u", lambda t: t[..., :0], "L >= 1"),
}


@pytest.mark.parametrize("bad", BAD)
def test_refuses_shapes_that_do_not_fit(bad: str) -> None:
    name, spoil, message = BAD[bad]
    tensors = as_float32(Case(7))
    with pytest.raises(ValueError, match=message):
        scan(tensors | {name: spoil(tensors[name])}, "auto")
