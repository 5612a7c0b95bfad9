"""`archlab bench --device cuda`: what it says where there is no GPU, and what it adds where there is one."""

from __future__ import annotations

import importlib

import pytest
import torch
from conftest import Archlab

from experiments.bench import _decoding, _measure
from kernels import gpu_ceilings

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")


@no_gpu
def test_without_a_gpu_one_sentence_says_so(archlab: Archlab) -> None:
    done = archlab("bench", "--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("archlab: --device cuda cannot be used (")
    assert done.stderr.endswith("): leave --device out to measure the CPU\n")
    assert done.stderr.count("\n") == 1


@no_gpu
def test_what_cannot_be_captured_says_why() -> None:
    assert str(_measure.captured(lambda: None)).startswith("cannot be captured (")


def test_a_graph_is_for_gpus() -> None:
    assert _decoding.as_graph(lambda: None, torch.zeros(1, 1)) == {}


def test_exponentials_have_a_ceiling_of_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gpu_ceilings, "vector", lambda *given: asked.append(given))
    assert _measure.ceiling("exp", torch.device("cuda")) is None
    assert asked == [("exp", 2**34, torch.device("cuda"))]


@no_gpu
def test_the_scan_is_measured_in_bfloat16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("experiments.bench.selective_scan")
    drawn = []
    honest = module.draw

    def draw(rows, channels, length, device, dtype):
        drawn.append((rows, length, dtype))
        return honest(1, 4, 8, torch.device("cpu"), dtype)

    monkeypatch.setattr(module, "draw", draw)
    cases = list(module._on_gpu(torch.device("cuda")))
    assert {dtype for *_, dtype in drawn} == {torch.bfloat16}
    assert max(length for _, length, _ in drawn) == 2**20
    for case in cases:
        assert case.peers.keys() == {"our triton", "mamba_ssm"}
