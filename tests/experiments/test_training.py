"""One cell trained with Lightning: the same as a plain loop, and everything that its record and TensorBoard show."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from toy_cell import cell, ignore

import archs
from experiments import data, tasks
from experiments.callbacks import Diverged, Recorder
from experiments.cell import Cell
from experiments.checkpoint import KillSafe
from experiments.config import Train
from experiments.module import Learner, step_seed
from experiments.training import prepare, quiet, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cells").mkdir()
    return tmp_path


def by_hand(toy: Cell) -> dict[str, torch.Tensor]:
    """The weights after training without Lightning."""
    task = tasks.make(toy.task, **toy.task_config)
    torch.manual_seed(toy.seed)
    learner = Learner(archs.build(toy.arch, task.vocab_size, **toy.arch_config), task, toy.train, seed=0, lr=toy.lr)
    configured = learner.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for step in range(toy.train.steps):
        batch = data.batch(task, toy.seed, "train", step, toy.train.batch_size)
        torch.manual_seed(step_seed(toy.seed, step))
        optimizer.zero_grad()
        learner.loss(batch).backward()
        # In the optimiser's order: a norm is a sum, and its last bit depends on the order.
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], toy.train.clip)
        optimizer.step()
        scheduler.step()
    return learner.state_dict()


def test_lightning_trains_exactly_like_a_plain_loop(folder: Path) -> None:
    """So the data, the order of things, clipping, dropout seeds and the schedule are what they claim to be."""
    toy = cell()
    saver = KillSafe(folder / "checkpoint", sources="", val_every=toy.train.val_every, every=1e9)
    run = prepare(toy, folder, ignore, saver, None)
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data)
    assert run.learner.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    expected = by_hand(toy)
    assert expected.keys() == run.learner.state_dict().keys()
    for name, weights in run.learner.state_dict().items():
        assert torch.equal(weights, expected[name]), name


def test_two_devices_train_like_one(folder: Path) -> None:
    """They share each batch, so without dropout the weights are those of one device but for rounding."""
    plain = {"arch_config": {"d_model": 16, "dropout": 0.0}}
    one, two = (train(cell(train={"devices": devices}, **plain), folder, ignore) for devices in (1, 2))
    for left, right in zip(one["quality"]["curve"], two["quality"]["curve"], strict=True):
        assert left["tokens"] == right["tokens"]
        assert left["train_loss"] == pytest.approx(right["train_loss"], rel=1e-4)
        assert left["validation"]["3"]["loss"] == pytest.approx(right["validation"]["3"]["loss"], rel=1e-4)
    assert "LOCAL_RANK" not in os.environ
    assert not torch.distributed.is_initialized()


def test_a_record_tells_what_happened(folder: Path) -> None:
    said: list[dict[str, Any]] = []
    result = train(cell(train={"steps": 10}), folder, said.append)
    quality = result["quality"]
    assert [point["step"] for point in quality["curve"]] == [4, 8, 10]
    assert quality["curve"][-1]["lr"] == pytest.approx(cell().lr * 0.5 * (1 + math.cos(math.pi * 8 / 9)))
    assert quality["validation"] == quality["curve"][-1]["validation"]
    assert quality["validation"].keys() == quality["test"].keys() == {"3", "5"}
    assert quality["test"]["3"].keys() == {"loss", "token_accuracy", "exact_match"}
    assert (quality["steps"], quality["examples"], quality["steps_to_solve"]) == (10, 80, None)
    task = tasks.make("reverse", **cell().task_config)
    batches = [data.batch(task, 0, "train", step, 8) for step in range(10)]
    assert quality["tokens"] == sum(batch.source.ids.numel() + batch.target.numel() for batch in batches)
    assert quality["parameters"] > quality["core_parameters"] > 0
    assert result["ran"] == {"kernels": {}, "loss": "cross_entropy", "fallback": None}
    assert [report["step"] for report in said if report["phase"] == "train"] == [*range(1, 11)]
    assert {report["phase"] for report in said} == {"train", "validate", "test"}


def test_it_learns(folder: Path) -> None:
    toy = cell(
        task="copy",
        task_config={"train_lengths": [5, 5], "test_lengths": [5], "symbols": 2},
        arch_config={"d_model": 32, "dropout": 0.0},
        train={"steps": 120, "val_every": 60, "batch_size": 32},
    )
    curve = train(toy, folder, ignore)["quality"]["curve"]
    assert curve[-1]["train_loss"] < 0.7 * curve[0]["train_loss"]
    assert curve[-1]["validation"]["5"]["token_accuracy"] > 0.6


@pytest.mark.parametrize("name", archs.names())
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_every_architecture_trains(name: str, precision: str, folder: Path) -> None:
    width, granule = archs.load(name).Config.width
    toy = cell(
        arch=name,
        arch_config={width: 4 * granule, "n_layers": 1},
        train={"steps": 3, "val_every": 2, "precision": precision, "label_smoothing": 0.1},
    )
    quality = train(toy, folder, ignore)["quality"]
    assert [math.isfinite(point["train_loss"]) for point in quality["curve"]] == [True, True]


@pytest.mark.parametrize("name", ["recall", "text"])
def test_tasks_with_inputs_of_their_own_train(name: str, folder: Path) -> None:
    toy = cell(task=name, task_config={}, train={"steps": 1, "val_every": 1, "val_examples": 4, "test_examples": 4})
    quality = train(toy, folder, ignore)["quality"]
    assert math.isfinite(quality["curve"][0]["train_loss"])
    headline = "bits_per_byte" if name == "text" else "exact_match"
    assert all(headline in scores for scores in quality["test"].values())


def poisoned(monkeypatch: pytest.MonkeyPatch, factor: float, step: int) -> None:
    """Multiply the loss from a step on."""
    honest = Learner.loss

    def loss(self: Learner, batch: data.Batch) -> torch.Tensor:
        return honest(self, batch) * (factor if self.trainer.global_step + 1 >= step else 1.0)

    monkeypatch.setattr(Learner, "loss", loss)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(factor: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, factor, step=7)
    with pytest.raises(Diverged, match="at step 7") as raised:
        train(cell(), folder, ignore)
    assert raised.value.quality is not None
    assert [point["step"] for point in raised.value.quality["curve"]] == [4]


def test_a_hopeless_loss_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, 100.0, step=5)
    with pytest.raises(Diverged, match="at step 8, more than 3 times that of a uniform guess"):
        train(cell(), folder, ignore)


def recorder(train: Train, *exact: tuple[float, float]) -> Recorder:
    """As after evaluations with such exact matches at lengths 3 (trained) and 5 (longer)."""
    made = Recorder(tasks.make("reverse", **cell().task_config), train, "reverse", ignore)
    made.curve = [
        {"step": 4 * (index + 1), "validation": {"3": {"exact_match": short}, "5": {"exact_match": long}}}
        for index, (short, long) in enumerate(exact)
    ]
    return made


@pytest.mark.parametrize(
    ("exact", "step"),
    [
        ([(0.99, 0.0), (1.0, 0.0)], 4),
        ([(0.0, 0.0), (1.0, 0.0), (1.0, 0.0), (0.5, 0.0)], 8),
        ([(1.0, 0.0), (0.98, 1.0), (1.0, 1.0)], None),
        ([(1.0, 1.0)], None),
        ([], None),
    ],
)
def test_solved_is_two_evaluations_running_at_trained_lengths(
    exact: list[tuple[float, float]], step: int | None
) -> None:
    assert recorder(Train(), *exact).steps_to_solve == step


def test_training_stops_when_solved_unless_told_otherwise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.callbacks.SOLVED", 0.0)
    stopped = train(cell(), folder, ignore)["quality"]
    assert (stopped["steps"], stopped["steps_to_solve"]) == (8, 4)
    whole = train(cell(train={"stop_when_solved": False}), folder, ignore)["quality"]
    assert (whole["steps"], whole["steps_to_solve"]) == (12, 4)


def events(folder: Path, toy: Cell) -> EventAccumulator:
    return EventAccumulator(str(folder / "tb" / toy.folder_name)).Reload()


def test_tensorboard_shows_curves_and_what_led_to_them(folder: Path) -> None:
    toy = cell(train={"steps": 21, "val_every": 7})
    quality = train(toy, folder, ignore)["quality"]
    shown = events(folder, toy)
    tags = set(shown.Tags()["scalars"])
    assert {f"reverse/train/{name}" for name in ("loss", "lr", "grad_norm", "tokens_per_second", "memory_GiB")} < tags
    assert {"reverse/val/loss", "reverse/val/accuracy", "reverse/val/exact_match"} < tags
    assert [event.step for event in shown.Scalars("reverse/val/accuracy")] == [7, 14, 21]
    assert [event.value for event in shown.Scalars("reverse/val/loss/length_5")] == pytest.approx(
        [point["validation"]["5"]["loss"] for point in quality["curve"]]
    )
    assert shown.Scalars("final/loss")[0].value == pytest.approx(quality["test"]["3"]["loss"])
    assert shown.Tags()["images"] == ["reverse/alignment"]
    text = shown.Tensors("reverse/configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "weight_decay: 0.1" in text


def test_hyperparameters_are_the_same_columns_in_every_cell(folder: Path) -> None:
    toy = cell(train={"steps": 1})
    train(toy, folder, ignore)
    contents = events(folder, toy).PluginTagToContent("hparams")
    started = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    assert started.session_start_info.hparams["arch"].string_value == "toy"
    assert started.session_start_info.hparams["lr"].number_value == 1e-2
    columns = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in columns.metric_infos] == [
        "final/loss",
        "final/accuracy",
        "final/exact_match",
        "final/bits_per_byte",
    ]


def test_starting_over_leaves_no_old_points(folder: Path) -> None:
    toy = cell(train={"steps": 4})
    for _ in range(2):
        train(toy, folder, ignore)
        (folder / "cells" / f"{toy.key}.ckpt").unlink()
    assert [event.step for event in events(folder, toy).Scalars("reverse/val/loss")] == [4]


def test_alignments_are_kept_small(folder: Path) -> None:
    toy = cell(train={"steps": 1}, task_config={"train_lengths": [30, 30], "test_lengths": [30], "symbols": 8})
    alignment = train(toy, folder, ignore)["quality"]["alignment"]
    assert len(alignment["weights"]) == len(alignment["target"]) == 24
    assert {len(row) for row in alignment["weights"]} == {len(alignment["source"])} == {24}
    assert alignment["target"][0] == 1
    assert all(weight == round(weight, 3) for row in alignment["weights"] for weight in row)


def test_a_family_without_attention_has_no_alignment(folder: Path) -> None:
    toy = cell(arch="mamba", arch_config={"d_model": 16, "n_layers": 1}, train={"steps": 1})
    assert train(toy, folder, ignore)["quality"]["alignment"] is None
    assert events(folder, toy).Tags()["images"] == []
