"""Every architecture, and every option that changes its computation, meets the contract."""

from __future__ import annotations

import pytest
import torch
from variants import NAMED, OPTIONS, SEQ2SEQ, build

import archs
import kernels
from archs.verify import RULES, verify_contract

ALL = {**NAMED, **SEQ2SEQ, **OPTIONS}


@pytest.mark.parametrize("variant", ALL)
def test_contract_in_float64(variant):
    verified = verify_contract(build(*ALL[variant]))
    assert verified.rules == tuple(RULES)


@pytest.mark.filterwarnings("ignore:.*runs on its slow backend")
@pytest.mark.parametrize("variant", {**NAMED, **OPTIONS})
def test_contract_in_float32_with_the_backends_of_auto(variant):
    verified = verify_contract(build(*ALL[variant]), torch.float32)
    assert verified.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*runs on its slow backend")
def test_report_names_the_backends_that_ran():
    backbone = build("mamba", {"d_model": 8, "n_layers": 1})
    fast = next(name for name, reason in kernels.backends("selective_scan", torch.float32, "cpu").items() if not reason)
    assert verify_contract(backbone, torch.float64).kernels["selective_scan"] == ["reference"]
    assert verify_contract(backbone, torch.float32).kernels["selective_scan"] == [fast]


def test_the_backbone_itself_is_left_alone():
    backbone = build("seq2seq", {"d_model": 8, "dropout": 0.5}).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    generator = torch.get_rng_state()
    verify_contract(backbone)
    assert backbone.training
    assert backbone.readout.weight.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_every_rule_says_what_it_is():
    assert all(check.__doc__ and check.__doc__.splitlines()[0].endswith(".") for check in RULES.values())


def test_a_dtype_too_coarse_is_refused():
    with pytest.raises(ValueError, match=r"expected dtype float64 or float32, got torch\.bfloat16"):
        verify_contract(build("gqa", {"d_model": 8}), torch.bfloat16)


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(ValueError, match="expected a vocabulary of at least 5 ids, got 4"):
        verify_contract(archs.build("gqa", 4, d_model=8))
