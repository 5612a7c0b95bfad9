"""The Learner: what it optimises, how fast, and what it scores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import toy_cell
from torch import Tensor, nn

import archs
from archs.contract import Tokens
from experiments import data, metrics, tasks
from experiments.config import Train
from experiments.data import Batch
from experiments.module import Learner, parameter_groups, schedule, step_seed, warmup_steps
from experiments.tasks.contract import BOS, EOS, UNSCORED, Task


def toy(task: Task, train: Train | None = None, **config: object) -> Learner:
    torch.manual_seed(0)
    backbone = archs.build(toy_cell.ARCH, task.vocab_size, **config)
    return Learner(backbone, task, train or Train(steps=10), seed=0, lr=1e-2)


@pytest.fixture
def reverse() -> Task:
    return tasks.make("reverse", **toy_cell.TASK)


def test_only_unmarked_matrices_decay(reverse: Task) -> None:
    backbone = toy(reverse).backbone
    decayed, rest = (group["params"] for group in parameter_groups(backbone, 0.1))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed} == {
        "embedding.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "readout.weight",
    }
    assert {names[id(parameter)] for parameter in rest} == set(names.values()) - {
        names[id(parameter)] for parameter in decayed
    }
    assert "gain" in {names[id(parameter)] for parameter in rest}


@pytest.mark.parametrize("name", archs.names())
def test_every_parameter_of_every_architecture_is_optimised_once(name: str) -> None:
    backbone = archs.build(name, 16, **{archs.load(name).Config.width[0]: 32})
    grouped = [id(parameter) for group in parameter_groups(backbone, 0.1) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in backbone.parameters())


def test_decay_of_mamba_spares_its_dynamics() -> None:
    backbone = archs.build("mamba", 16, d_model=16)
    decayed = {id(parameter) for parameter in parameter_groups(backbone, 0.1)[0]["params"]}
    names = [name for name, parameter in backbone.named_parameters() if id(parameter) in decayed]
    assert names
    assert not [name for name in names if name.endswith(("A_log", ".D", "bias")) or "norm" in name]


def test_the_schedule_rises_then_falls_to_zero() -> None:
    rates = [schedule(step, steps=20, warmup=5) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[12] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 15)))
    assert rates[20] == pytest.approx(0.0)


def test_a_warmup_of_nothing_still_has_one_step() -> None:
    assert warmup_steps(Train(steps=10, warmup=0.0)) == 1
    assert schedule(0, steps=1, warmup=1) == 1.0


def test_step_seeds_differ_by_seed_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(2)}
    assert len(seeds) == 300


def test_clipping_reports_the_norm_before(reverse: Task) -> None:
    learner = toy(reverse)
    optimizer = learner.configure_optimizers()["optimizer"]
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in learner.parameters())
    learner.configure_gradient_clipping(optimizer, gradient_clip_val=0.5)
    assert learner.gradient_norm.item() == pytest.approx(math.sqrt(count), rel=1e-5)
    left = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in learner.parameters()))
    assert left == pytest.approx(0.5, rel=1e-4)


def test_no_clipping_changes_no_gradient(reverse: Task) -> None:
    learner = toy(reverse)
    optimizer = learner.configure_optimizers()["optimizer"]
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    learner.configure_gradient_clipping(optimizer, gradient_clip_val=None)
    assert all(bool((parameter.grad == 3.0).all()) for parameter in learner.parameters())


def test_the_loss_ignores_what_is_unscored(reverse: Task) -> None:
    learner = toy(reverse).eval()
    batch = data.batch(reverse, 0, "train", 0, 4)
    labels = batch.labels.clone()
    labels[:, 1] = UNSCORED
    logits = learner.backbone(batch.source, batch.target)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNSCORED)
    torch.testing.assert_close(learner.loss(batch._replace(labels=labels)), expected)


class Answers(nn.Module):
    """Stands for a backbone: gives fixed logits."""

    def __init__(self, answers: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(answers, vocab_size).float() * 50
        self.readout = nn.Linear(vocab_size, vocab_size, bias=False)
        nn.init.eye_(self.readout.weight)

    def features(self, source: Tokens, target: Tensor) -> Tensor:
        return self.logits


def test_scores_in_one_pass_count_scored_tokens_and_whole_rows() -> None:
    task = tasks.make("recall")
    labels = torch.tensor([[5, UNSCORED, 6], [7, 8, UNSCORED], [9, 9, 9]])
    answers = torch.tensor([[5, 3, 6], [7, 3, 3], [9, 9, 9]])
    batch = Batch(Tokens(torch.ones(3, 1, dtype=torch.int64)), torch.ones_like(labels), labels)
    score = metrics.score(Answers(answers, task.vocab_size), task, batch)
    assert score["token_accuracy"][0].item() == pytest.approx(6 / 7)
    assert score["exact_match"][0].item() == pytest.approx(2 / 3)
    assert (score["token_accuracy"][1], score["exact_match"][1]) == (7, 3)


@pytest.mark.parametrize("columns", [3, 2])
def test_scores_of_generation_come_from_greedy(reverse: Task, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What generation did not say, because every row had ended, is wrong."""
    labels = torch.tensor([[5, 6, EOS], [7, EOS, UNSCORED]])
    answers = torch.tensor([[5, 6, EOS], [7, EOS, 0]])[:, :columns]
    monkeypatch.setattr(archs, "greedy", lambda backbone, source, max_new_tokens: answers)
    batch = Batch(Tokens(torch.ones(2, 2, dtype=torch.int64)), torch.full_like(labels, BOS), labels)
    wrong = torch.zeros_like(labels)
    score = metrics.score(Answers(wrong, reverse.vocab_size), reverse, batch)
    assert score["exact_match"][0].item() == (1.0 if columns == 3 else 0.5)
    assert score["token_accuracy"][0].item() == pytest.approx(1.0 if columns == 3 else 4 / 5)
    assert score["loss"][0].item() > 1.0


def test_means_are_weighted_by_tokens_and_rows(reverse: Task) -> None:
    running = metrics.Metrics(reverse, torch.device("cpu"))
    for value, weight in ((1.0, 1), (4.0, 2)):
        mean = (torch.tensor(value), weight)
        running.update(3, {"loss": mean, "token_accuracy": mean, "exact_match": mean})
        running.update(5, {"loss": mean, "token_accuracy": mean, "exact_match": mean})
    assert running.compute() == {
        length: {"loss": 3.0, "token_accuracy": 3.0, "exact_match": 3.0} for length in ("3", "5")
    }


def test_text_is_scored_in_bits_per_byte(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_bytes(bytes(range(256)) * 40)
    task = tasks.make("text", path=str(tmp_path / "corpus"), continuation=4, train_lengths=[4, 4], test_lengths=[4])
    running = metrics.Metrics(task, torch.device("cpu"))
    running.update(4, metrics.score(toy(task).backbone, task, data.batch(task, 0, "validation", 0, 4, 4)))
    scores = running.compute()["4"]
    assert scores.keys() == {"loss", "token_accuracy", "bits_per_byte"}
    assert scores["bits_per_byte"] == pytest.approx(scores["loss"] / math.log(2))


def test_a_loss_that_is_not_finite_is_not_hidden(reverse: Task) -> None:
    running = metrics.Metrics(reverse, torch.device("cpu"))
    mean = (torch.tensor(math.nan), 1)
    for length in reverse.test_lengths:
        running.update(length, {"loss": mean, "token_accuracy": mean, "exact_match": mean})
    assert math.isnan(running.compute()["3"]["loss"])
