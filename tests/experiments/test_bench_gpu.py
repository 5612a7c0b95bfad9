"""`archlab bench --device cuda`: what it says where there is no GPU, and what it adds where there is one."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from unittest.mock import Mock

import pytest
import torch
from conftest import Archlab
from torch import Tensor

import archs
from archs.decoder import EAGER, Decoder
from experiments.bench import _decoding, _graphs, _measure
from experiments.bench._graphs import Graphed
from kernels import gpu_ceilings

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")


@no_gpu
def test_without_a_gpu_one_sentence_says_so(archlab: Archlab) -> None:
    done = archlab("bench", "--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("archlab: --device cuda cannot be used (")
    assert done.stderr.endswith("): leave --device out to measure the CPU\n")
    assert done.stderr.count("\n") == 1


class Replaying(Decoder):
    """Steps that a graph makes, and that say what went wrong where it could not be made."""

    steps = 0

    def step(self, token: Tensor) -> Tensor:
        type(self).steps += 1
        if self.steps == EAGER + 1 and self.fails:
            warnings.warn(self.fails, stacklevel=1)
        return token

    fails = ""


@pytest.mark.parametrize("fails", ["", "a step of GQA is no CUDA graph"])
@pytest.mark.parametrize("name", ["gqa_decode", "mamba_decode"])
def test_decoding_is_measured_as_generation_does_it(name: str, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is captured before anything is timed, or the line says why there is none."""
    decoder = type("Fresh", (Replaying,), {"fails": fails})
    monkeypatch.setattr(_decoding, "capturable", lambda device: True)
    monkeypatch.setattr(_decoding, "Decoder", decoder)
    module = importlib.import_module(f"experiments.bench.{name}")
    work = module._case(128, 1, 16, torch.device("cpu")).peers["ours as one CUDA graph"]
    assert decoder.steps == EAGER + 1
    if fails:
        assert work == fails
    else:
        work()
        assert decoder.steps == EAGER + 2


def test_a_graph_is_for_gpus() -> None:
    model = archs.build("mamba", 8, d_model=8)
    with torch.inference_mode():
        state = model.encode(archs.Tokens(torch.zeros(1, 1, dtype=torch.int64)), room=1)
    assert _decoding.as_graph(model, state, torch.zeros(1, 1)) == {}


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

    def draw(rows, channels, length, device, dtype, last):
        drawn.append((rows, length, dtype))
        return honest(1, 4, 8, torch.device("cpu"), dtype, last)

    monkeypatch.setattr(module, "draw", draw)
    cases = list(module._on_gpu(torch.device("cuda")))
    assert {length for _, length, dtype in drawn if dtype == torch.bfloat16} == {2**11, 2**16, 2**18}
    assert all(isinstance(case.ours, Graphed) for case in cases)
    assert all("mamba_ssm" in case.peers for case in cases[:-1])
    assert cases[-1].peers.keys() == {"eager loop", "16-step chunk, compiled"}


def test_a_graph_is_captured_once_and_its_work_can_be_run_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With streams and graphs that are not there in the place of CUDA's."""
    ran: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(_graphs, "capture", lambda work: (work(), lambda: ran.append("replay"))[1])
    work = Graphed(lambda: ran.append("work"))
    work()
    work()
    work.eager()
    assert ran == ["work", "work", "work", "replay", "replay", "work"]


def test_a_step_of_mamba_is_measured_beside_attention_up_to_128k_tokens_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("experiments.bench.mamba_step")
    lengths: list[int] = []
    monkeypatch.setattr(module, "_case", lambda *given: None)
    monkeypatch.setattr(module, "_beside_attention", lambda length, device: lengths.append(length))
    assert len(list(module.cases(torch.device("cuda")))) == 5
    assert lengths == [2048, 8192, 32768, 131072]


def test_a_step_of_mamba_and_of_gqa_run_on_the_same_tokens() -> None:
    case = importlib.import_module("experiments.bench.mamba_step")._beside_attention(16, torch.device("cpu"))
    case.ours()
    case.peers["our gqa"]()
