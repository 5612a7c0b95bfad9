"""The two accounts of memory: real and fake tensors, and what published models must come to, to the byte."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from test_profile import point
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import mm_flop

import archs
import archs.gqa
import kernels
from archs.contract import Tokens
from experiments import malloc, measure
from experiments.profile import measure as measuring
from experiments.profile import operations, scratch
from experiments.profile import predict as prediction
from experiments.profile import subject as subjects
from experiments.profile.account import account
from experiments.profile.measure import measured
from experiments.profile.models import MODELS
from experiments.profile.point import Point
from experiments.profile.predict import predict, predictor
from experiments.profile.tracker import CATEGORIES, Tracker

SIZES: dict[str, dict[str, Any]] = {
    "seq2seq": {"d_model": 16},
    "transformer": {"d_model": 32, "n_layers": 1},
    "gqa": {"d_model": 32, "n_layers": 1},
    "mamba": {"d_model": 32, "n_layers": 1},
}
MIB = 2**20


def small(arch: str, mode: str, context: int, rows: int = 1) -> Point:
    return point(context, label=arch, arch=arch, arch_config=SIZES[arch], mode=mode, rows=rows, vocab_size=64)


@pytest.mark.parametrize("mode", ["train", "prefill", "decode"])
@pytest.mark.parametrize("arch", sorted(SIZES))
def test_prediction_agrees_with_the_tracked_measurement(arch: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is extrapolated: a loop over time is, and 160 lies beyond what its polynomial is fitted to."""
    monkeypatch.setattr(prediction, "FITTED", ((48, 64, 80, 96),))
    context = 160 if arch == "seq2seq" else 1024
    given = small(arch, mode, context, rows=2)
    (predicted,), result = predict(given), measured(given, None, lambda told: None)
    tracked = result["tracked"]
    assert arch == "seq2seq" or not predicted["extrapolated"]
    for name in ("peak_bytes", "needed_bytes", "flops", "moved_bytes"):
        assert abs(predicted[name] / tracked[name] - 1) <= 0.05, name
    assert predicted["state_bytes"] == tracked["state_bytes"]
    assert sum(tracked["split"].values()) == tracked["peak_bytes"]
    assert result["speed"]["low"] <= result["speed"]["median"] <= result["speed"]["high"]


def memory_of(given: Point) -> dict[str, Any]:
    """What is measured but speed."""
    with patch.object(measuring, "_speed", lambda *passed: {}):
        return measured(given, None, lambda told: None)


@pytest.mark.parametrize("mode", ["train", "prefill", "decode"])
@pytest.mark.parametrize("arch", sorted(SIZES))
def test_the_process_needs_what_was_tracked(arch: str, mode: str) -> None:
    """What is over 512 MiB, where 10 % and 64 MiB are less than a sixth. Of loops over time 30 % would do.

    Decoding itself, which holds little beside its state, is told apart from the reading before, and held to 16 MiB.
    """
    sizes = {"d_model": 128} if arch == "seq2seq" else {"d_model": 128, "n_layers": 1}
    rows = {"train": 256, "prefill": 768, "decode": 768}[mode]
    given = point(256, label=arch, arch=arch, arch_config=sizes, mode=mode, rows=rows, threads=torch.get_num_threads())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # what tests before left is not its own
        result = alone.submit(memory_of, given).result()
    if result["process_bytes"] is None:
        pytest.skip("the system does not tell a process's peak")
    tracked, process = result["tracked"], result["process_before_bytes"] or result["process_bytes"]
    assert tracked["needed_bytes"] > 512 * MIB
    assert abs(process - tracked["needed_bytes"]) <= 0.1 * process + 64 * MIB
    if mode == "decode":
        process, known = result["process_bytes"], tracked["peak_bytes"]
        assert tracked["needed_bytes"] == tracked["before_bytes"] > known > tracked["state_bytes"]
        assert abs(process - known) <= 0.1 * process + 16 * MIB


def test_what_a_training_step_holds_is_told_apart() -> None:
    given = dataclasses.replace(small("gqa", "train", 1024), arch_config={"d_model": 32, "n_layers": 2})
    subject = subjects.build(given)
    subjects.warm_up(subject)
    split = account(subject, 1024)["split"]
    parameters = sum(parameter.nbytes for parameter in subject.backbone.parameters())
    assert tuple(split) == CATEGORIES
    assert split["parameters"] == parameters
    assert 2 * parameters <= split["optimizer"] < 2 * parameters + 4096  # two moments, and each one's step
    assert 0 < split["gradients"] <= parameters
    assert split["activations"] > split["rest"]
    assert split["state"] == 0


def test_the_tracker_sees_storages_once_and_lets_them_go() -> None:
    with Tracker() as tracker:
        first = torch.zeros(1000)
        view = first[10:].view(-1, 10)
        assert tracker.total == 4000
        second = first + 1
        assert tracker.total == tracker.peak == 8000
        del first
        assert tracker.total == 8000  # the view holds it
        del view
        assert tracker.total == 4000
        tracker.hold(second, "state")
        tracker.reset()
        assert tracker.split() == {**dict.fromkeys(CATEGORIES, 0), "state": 4000}


def test_flops_are_torchs_own_and_attention_counts_every_head() -> None:
    given = point(64, arch_config={"d_model": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 1}, mode="prefill")
    (found,) = predict(given)
    width, hidden, length = 32, 88, 64
    projections = 2 * length * (2 * width * width + 2 * width * 8 + 3 * width * hidden)
    assert found["flops"] == projections + 4 * length * length * width


def test_our_operators_have_formulas_but_those_that_work_elementwise() -> None:
    """Else a new or renamed one would silently cost nothing."""
    folder = Path(kernels.__file__).parent
    for file in folder.glob("*/[!_]*.py"):
        importlib.import_module(f"kernels.{file.parent.name}.{file.stem}")
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    ours = {name for name in names if name.startswith("archlab::")}
    elementwise = {name for name in ours if name.split("::")[1].startswith(("rms_norm", "rotary", "swiglu"))}
    assert {name for name in operations.OWN if name.startswith("archlab::")} == ours - elementwise
    assert operations.OWN.keys() <= names


def test_flops_of_a_product_are_torchs() -> None:
    x, weight = torch.zeros(100, 30), torch.zeros(20, 30)
    assert operations.OWN["archlab::linear_cpu"]((x, None, weight, None, False)) == mm_flop(x.shape, weight.T.shape)
    dout = torch.zeros(100, 20)
    assert operations.OWN["archlab::linear_cpu_weight"]((dout, None, x, False)) == mm_flop(dout.T.shape, x.shape)


def test_flops_of_the_attentive_gru_are_those_of_its_products_and_its_attention() -> None:
    rows, steps, keys, hidden, values = 2, 3, 5, 16, 32
    gates, queries, states = (
        torch.zeros(rows, steps, 3 * hidden),
        torch.zeros(rows, steps, hidden),
        torch.zeros(rows, hidden),
    )
    matrices = [torch.zeros(3 * hidden, values), torch.zeros(3 * hidden, hidden), torch.zeros(hidden, hidden)]
    source = torch.zeros(rows, keys, hidden), torch.zeros(rows, keys, values), torch.zeros(hidden)
    arguments = gates, queries, states, *matrices[:2], torch.zeros(3 * hidden), matrices[2], *source, None
    products = 2 * sum(matrix.numel() for matrix in matrices)
    attention = keys * (4 * hidden + 2 * values)
    assert operations.OWN["archlab::attentive_gru_cpu"](arguments) == rows * steps * (products + attention)


def calls(rows: int = 2) -> dict[str, tuple[Any, ...]]:
    """Operators of ours that hold much within, each with arguments for which that is tens of MiB."""
    rand = torch.randn
    heads, few = rand(rows, 2, 2**15, 32), rand(rows, 4, 128, 32)
    steps, inputs = rand(2, 100, 2**14), rand(2, 16, 2**14)
    scanned = steps, steps, -torch.rand(100, 16), inputs, inputs, None, steps, None, None, True
    states = rand(2, 100, 16)
    queries, keys, values = rand(rows, 64, 40), rand(rows, 2**14, 40), rand(rows, 2**14, 24)
    width, long, source = 48, 2**12, rand(rows, 2**14, 48)
    recurrent = rand(width, 3 * width).mT, rand(width, 3 * width).mT
    gates, first, by_query, by_key = rand(rows, 64, 3 * width), rand(rows, width), rand(width, width).mT, rand(width)
    outputs, weights = rand(rows, 64, width), torch.rand(rows, 64, 2**14)
    return {
        "attention_cpu": (few, heads, heads, False),
        "attention_cpu_backward": (few, few, heads, heads, few, rand(rows, 4, 128), False),
        "selective_scan_cpu_backward": (steps, states, rand(2 * 255, 100, 16), *scanned),
        "additive_attention_cpu": (queries, keys, values, rand(40), None),
        "additive_attention_cpu_backward": (rand(rows, 64, 24), weights, queries, keys, values, rand(40), None),
        "linear_cpu": (rand(64, 1000), None, rand(2100, 1000), None, False),
        "linear_cpu_weight": (rand(2**14, 440), None, rand(2**14, 250), True),
        "gru_cpu_backward": (rand(8, width, long).mT, rand(8, long, width), rand(8, long, 4 * width), rand(8, width),
                             recurrent[0]),
        "attentive_gru_cpu": (gates, outputs, first, *recurrent, rand(3 * width), by_query, source, source, by_key,
                              None),
        "attentive_gru_cpu_backward": (outputs, outputs, outputs, outputs, weights, rand(rows, 64, 4 * width), outputs,
                                       first, *recurrent, by_query, source, source, by_key, None),
    }  # fmt: skip


def taken_and_returned(name: str) -> tuple[int, int] | None:
    """Bytes at the operator's peak, in a process that does nothing else, and those of its results.

    On one thread: which of several are awake in time for a task is left to chance. In small pages: memory asked for in
    large ones before (pages.h) would be counted by 2 MiB when it is used again.
    """
    disable_large_pages = 41  # PR_SET_THP_DISABLE of prctl.h
    getattr(ctypes.CDLL(None), "prctl", lambda *settings: None)(disable_large_pages, 1, 0, 0, 0)
    torch.set_num_threads(1)
    malloc.return_freed()
    module = importlib.import_module(f"kernels.{name.partition('_cpu')[0]}.cpu")
    assert module.why_not(None, None) is None  # loads it
    cpu, arguments, operator = torch.device("cpu"), calls()[name], getattr(torch.ops.archlab, name).default
    operator(*arguments)  # what is made at first use
    gc.collect()
    before = measure.allocated(cpu)
    results = operator(*arguments)
    after = measure.most_allocated(cpu)
    own = sum(result.nbytes for result in (results if isinstance(results, list | tuple) else [results]))
    return None if before is None or after is None else (after - before, own)


@pytest.fixture(scope="module")
def alone() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: what other tests have left, and their threads, are no part of what is measured there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize("name", sorted(calls()))
def test_a_kernel_takes_the_scratch_memory_that_it_declares(name: str, alone: ProcessPoolExecutor) -> None:
    found = alone.submit(taken_and_returned, name).result()
    if found is None:
        pytest.skip("the system does not tell a process's peak")
    taken, own = found
    declared = scratch.SCRATCH[f"archlab::{name}"](calls()[name], 1)
    assert declared > 4 * MIB
    assert abs(taken - own - declared) < 0.05 * declared + MIB


def test_every_thread_has_scratch_memory_of_its_own_and_a_gpu_needs_none() -> None:
    def peak(threads: int) -> int:
        with FakeTensorMode(), Tracker(threads) as tracker:
            kernels.attention(*(torch.zeros(1, 2, 4096, 32) for _ in range(3)), causal=True)
        return tracker.peak

    none, one, two, three = map(peak, range(4))
    assert two - one == one - none == 2 * 4 * 4096 * 32
    assert three == two  # a task per head, and there are two


def test_bahdanaus_state_grows_with_the_source() -> None:
    backbone = archs.build("seq2seq", 64, d_model=16)
    sizes = [backbone.encode(Tokens(torch.zeros(1, length, dtype=torch.int64))).nbytes for length in (64, 128, 192)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 64 * 3 * 16 * 4


def plain_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Without a fused kernel: all scores at once."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)


def test_attention_without_a_fused_kernel_is_quadratic_in_memory_with_one_linear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def growth() -> float:
        with predictor(small("gqa", "train", 8192)) as at:
            return at(8192)["peak_bytes"] / at(4096)["peak_bytes"]

    assert 1.8 < growth() < 2.1
    monkeypatch.setattr(archs.gqa, "attend", plain_attention)
    assert 3.8 < growth() < 4.1


def test_a_million_tokens_of_llama_on_a_card_is_answered_without_either() -> None:
    """Four of the 32 layers, to be quick; their cache alone is 16 GiB."""
    model = MODELS["llama-3-8b"]
    given = point(2**20, arch_config={**model.config, "n_layers": 4}, vocab_size=model.vocab_size, mode="decode")
    (found,) = predict(dataclasses.replace(given, dtype="bfloat16", card="h100"))
    assert found["split"]["state"] >= 2**20 * 128 * 1024 * 4 // 32
    assert found["needed_bytes"] > found["peak_bytes"]  # reading a million tokens at once takes more than decoding
    assert found["roofline_seconds"] > found["moved_bytes"] / 3350e9 * 0.99
