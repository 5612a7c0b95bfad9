"""Greedy, sampling and beam search, against known chains and against every architecture's own forward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from toys import Chain, ragged
from variants import ONE_OF_EACH, VOCABULARY, build

from archs import Tokens, beam, greedy, sample
from archs.ids import BOS, EOS, PAD

LENGTHS = (6, 1, 4, 2, 5)


@pytest.fixture(params=ONE_OF_EACH)
def backbone(request):
    return build(*ONE_OF_EACH[request.param])


def successor(*following: int) -> Chain:
    """A chain in which token i is followed by `following[i]`."""
    return Chain(10.0 * torch.eye(len(following))[list(following)])


def random_chain(size: int, seed: int) -> Chain:
    generator = torch.Generator().manual_seed(seed)
    return Chain(*(2 * torch.randn(size, size, generator=generator) for _ in range(2)))


def cut(ids: Tensor, eos: int) -> Tensor:
    """What generation must return for ids (B, T) made without an end: PAD after each row's first `eos`."""
    ended = (ids == eos).cumsum(1)
    ids = ids.masked_fill((ended - (ids == eos).long()) > 0, PAD)
    longest = max([row.index(eos) + 1 if eos in row else ids.shape[1] for row in ids.tolist()])
    return ids[:, :longest]


def test_greedy_follows_the_chain_to_its_end():
    ids = greedy(successor(0, 3, 0, 4, 5, EOS), Tokens(torch.tensor([[5]])), 10)
    assert ids.tolist() == [[3, 4, 5, EOS]]


def test_rows_that_ended_stay_pad():
    hints = torch.zeros(5, 5)
    hints[4, EOS] = 100.0
    table = 10.0 * torch.eye(5)[[0, 3, 0, 3, 3]]
    ids = greedy(Chain(table, hints), Tokens(torch.tensor([[3], [4], [4]])), 3)
    assert ids.tolist() == [[3, 3, 3], [EOS, PAD, PAD], [EOS, PAD, PAD]]


def test_generation_stops_when_all_rows_ended():
    assert greedy(successor(0, 3, 0, EOS), Tokens(torch.tensor([[3], [3]])), 50).shape == (2, 2)


def test_without_eos_nothing_ends():
    assert greedy(successor(0, EOS, EOS), Tokens(torch.tensor([[1]])), 3, eos=None).tolist() == [[EOS] * 3]


def test_greedy_is_the_argmax_of_forward(backbone):
    source = ragged(*LENGTHS, vocabulary=VOCABULARY)
    ids = greedy(backbone, source, 7, eos=None)
    inputs = torch.cat([torch.full((len(LENGTHS), 1), BOS), ids[:, :-1]], 1)
    assert torch.equal(ids, backbone(source, inputs).argmax(-1))


def test_dropping_rows_that_ended_changes_nothing(backbone):
    source = ragged(*LENGTHS, vocabulary=VOCABULARY)
    endless = greedy(backbone, source, 7, eos=None)
    for eos in endless.unique().tolist():
        assert torch.equal(greedy(backbone, source, 7, eos), cut(endless, eos))


def test_a_beam_of_one_is_greedy(backbone):
    source = ragged(*LENGTHS, vocabulary=VOCABULARY)
    for eos in (None, *greedy(backbone, source, 7, eos=None).unique().tolist()):
        assert torch.equal(beam(backbone, source, 7, 1, eos=eos), greedy(backbone, source, 7, eos))


def test_a_beam_as_wide_as_all_prefixes_finds_the_best_of_all(backbone):
    longest, source = 3, ragged(4, 2, vocabulary=VOCABULARY)
    found = beam(backbone, source, longest, VOCABULARY ** (longest - 1), eos=None)
    hypotheses = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * longest)
    for row, length in enumerate((4, 2)):
        alone = Tokens(source.ids[row : row + 1, -length:].expand(len(hypotheses), -1))
        assert torch.equal(found[row], hypotheses[log_likelihood(backbone, alone, hypotheses).argmax()])


@torch.no_grad()
def log_likelihood(backbone, source, ids):
    """(B,) log-probabilities of ids (B, T) under teacher forcing."""
    inputs = torch.cat([torch.full((len(ids), 1), BOS), ids[:, :-1]], 1)
    return backbone(source, inputs).log_softmax(-1).gather(-1, ids[..., None]).sum((1, 2))


def every_hypothesis(size: int, longest: int):
    """All sequences that end with EOS or are `longest` tokens long."""
    for length in range(1, longest + 1):
        for ids in itertools.product(range(size), repeat=length):
            if EOS not in ids[:-1] and (ids[-1] == EOS or length == longest):
                yield ids


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_hypotheses(seed, length_penalty):
    size, longest = 5, 4
    chain, source = random_chain(size, seed), Tokens(torch.tensor([[3], [4]]))
    found = beam(chain, source, longest, size**longest, length_penalty)
    for row, last in enumerate(source.ids[:, -1].tolist()):
        logits = (chain.table.weight + chain.hints.weight[last]).log_softmax(-1)

        def score(ids, logits=logits):
            likelihood = sum(logits[pair].item() for pair in zip((BOS, *ids), ids, strict=False))
            return likelihood / ((5 + len(ids)) / 6) ** length_penalty

        best = max(every_hypothesis(size, longest), key=score)
        assert found[row].tolist()[: len(best)] == list(best)
        assert not found[row, len(best) :].any()


def test_length_penalty_prefers_longer_hypotheses():
    chain, source = random_chain(5, 2), Tokens(torch.tensor([[3]]))
    lengths = [beam(chain, source, 6, 50, penalty).shape[1] for penalty in (-5.0, 0.0, 5.0)]
    assert lengths[0] < lengths[2]
    assert lengths == sorted(lengths)


def test_sampling_the_most_likely_token_is_greedy(backbone):
    source = ragged(*LENGTHS, vocabulary=VOCABULARY)
    expected = greedy(backbone, source, 6)
    assert torch.equal(sample(backbone, source, 6, top_k=1), expected)
    assert torch.equal(sample(backbone, source, 6, top_p=1e-6), expected)
    assert torch.equal(sample(backbone, source, 6, temperature=1e-6), expected)


def frequencies(chain: Chain, **settings) -> Tensor:
    """Shares of the first token in 20,000 draws."""
    source = Tokens(torch.full((20_000, 1), 3))
    drawn = sample(chain, source, 1, generator=torch.Generator().manual_seed(0), **settings)[:, 0]
    return drawn.bincount(minlength=len(chain.table.weight)) / len(drawn)


PROBABILITIES = torch.tensor([0.4, 0.05, 0.15, 0.1, 0.3])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"top_k": 2}, PROBABILITIES * torch.tensor([1, 0, 0, 0, 1])),
        ({"top_k": 99}, PROBABILITIES),
        ({"top_p": 0.65}, PROBABILITIES * torch.tensor([1, 0, 0, 0, 1])),
        ({"top_p": 0.75}, PROBABILITIES * torch.tensor([1, 0, 1, 0, 1])),
        ({"top_p": 1.0}, PROBABILITIES),
        ({"top_k": 3, "top_p": 0.8}, PROBABILITIES * torch.tensor([1, 0, 0, 0, 1])),
    ],
)
def test_sampling_draws_from_the_distribution(settings, expected):
    chain = Chain(PROBABILITIES.log().expand(5, 5).clone())
    expected = expected / expected.sum()
    # Four standard deviations of a share in 20,000 draws is at most 0.0142.
    assert torch.allclose(frequencies(chain, **settings), expected, atol=0.0142)
    assert (frequencies(chain, **settings)[expected == 0] == 0).all()


def test_sampling_is_reproducible_from_its_generator():
    chain, source = random_chain(12, 0), ragged(3, 2, 1, vocabulary=12)
    draws = [sample(chain, source, 9, eos=None, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("generate", [greedy, sample, lambda *rest: beam(*rest, width=2)])
def test_ids_can_be_trained_on(generate):
    backbone = build("gqa", {"d_model": 8, "n_layers": 1, "n_heads": 2})
    source = ragged(3, 1, vocabulary=VOCABULARY)
    ids = generate(backbone, source, 4)
    backbone(source, ids).sum().backward()
    assert backbone.embedding.weight.grad is not None


def test_generation_leaves_the_mode_alone():
    backbone = build("seq2seq", {"d_model": 8}).train()
    greedy(backbone, ragged(3, vocabulary=VOCABULARY), 2)
    assert backbone.training


@pytest.mark.parametrize(
    ("generate", "settings", "message"),
    [
        (greedy, {"max_new_tokens": 0}, "expected max_new_tokens >= 1, got 0"),
        (sample, {"temperature": 0.0}, r"sample: expected temperature > 0, got 0\.0; for the limit 0 use greedy"),
        (sample, {"top_k": 0}, "sample: expected top_k >= 1, got 0"),
        (sample, {"top_p": 1.5}, r"sample: expected 0 < top_p <= 1, got 1\.5"),
        (beam, {"width": 0}, "beam: expected width >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(generate, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(successor(0, 1, 2), Tokens(torch.tensor([[1]])), **{"max_new_tokens": 3, **settings})
