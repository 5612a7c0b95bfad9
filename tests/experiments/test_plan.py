"""Plans: what becomes a cell, with which settings and rates, and that every mistake is found before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_cell import ARCH

from experiments import config, plan
from experiments.cell import slug
from experiments.config import Train
from experiments.errors import UserError
from experiments.selection import Score, select
from experiments.variants import Variant, parse, parse_all

SMALL = {"archs": ["gqa"], "tasks": ["reverse"], "seeds": 1, "budget": {"value": 20_000}}


def planned(**overrides: Any) -> plan.Plan:
    return plan.plan(config.load(None, config.merge(SMALL, overrides)))


def refusal(**overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        planned(**overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "variant"),
    [
        ("gqa", Variant("gqa", "gqa")),
        ("gqa:a=1+b=x", Variant("gqa:a=1+b=x", "gqa", {"a": "1", "b": "x"})),
        ("/x/mine.py", Variant("mine", "/x/mine.py")),
        ("/x/mine.py:a=1", Variant("mine:a=1", "/x/mine.py", {"a": "1"})),
        ("C:/x/mine.py:a=1", Variant("mine:a=1", "C:/x/mine.py", {"a": "1"})),
        ({"label": "mqa", "arch": "gqa", "a": 1}, Variant("mqa", "gqa", {"a": 1})),
        ({"arch": "gqa", "a": 1}, Variant("gqa:a=1", "gqa", {"a": 1})),
        ({"arch": "gqa"}, Variant("gqa", "gqa")),
    ],
)
def test_variants_are_read_in_every_form(entry: Any, variant: Variant) -> None:
    assert parse(entry, "arch") == variant


@pytest.mark.parametrize("entry", ["", 3, {"label": "x"}, "gqa:n", "gqa:=1", "gqa:a=1+", {"arch": 3}])
def test_a_malformed_variant_is_refused(entry: Any) -> None:
    with pytest.raises(UserError, match=r"archs|variant"):
        parse(entry, "arch")


def test_two_variants_may_not_share_a_folder() -> None:
    with pytest.raises(UserError, match="share one name"):
        parse_all(["gqa:a=1", "GQA-a-1"], "arch")


def test_the_grid_of_cells() -> None:
    made = planned(archs=["gqa", "mamba"], tasks=["reverse", "recall"], seeds=2)
    assert [(cell.seed, cell.task_label, cell.label) for cell in made.first()] == [
        (seed, task, arch) for seed in (0, 1) for task in ("reverse", "recall") for arch in ("gqa", "mamba")
    ]
    assert [(cell.kind, cell.seed) for cell in made.cost()] == [("cost", 0)] * 4
    assert made.rest({}) == []
    assert made.possible() == {cell.key for cell in made.first() + made.cost()}
    assert len(made.possible()) == 12


def test_each_architecture_has_its_declared_rate_unless_one_is_given() -> None:
    declared = {cell.label: cell.lr for cell in planned(archs=["gqa", "mamba", "mamba:learning_rate=0.5"]).first()}
    assert declared == {"gqa": 2e-3, "mamba": 3e-3, "mamba:learning_rate=0.5": 0.5}
    assert {cell.lr for cell in planned(archs=["gqa", "mamba"], lr=0.25).first()} == {0.25}


def test_settings_come_from_the_name_then_the_label_then_the_variant() -> None:
    made = planned(
        archs=["gqa", "gqa:n_kv_heads=1", {"label": "mine", "arch": "gqa"}],
        arch={"gqa": {"n_kv_heads": 4, "dropout": 0.1}, "mine": {"dropout": 0.2}, "mamba": {"d_conv": 2}},
        task={"reverse": {"symbols": 5}},
    )
    found = {cell.label: (cell.arch_config["n_kv_heads"], cell.arch_config["dropout"]) for cell in made.first()}
    assert found == {"gqa": (4, 0.1), "gqa:n_kv_heads=1": (1, 0.1), "mine": (4, 0.2)}
    assert {cell.task_config["symbols"] for cell in made.first()} == {5}


def test_training_may_differ_per_task() -> None:
    made = planned(tasks=["reverse", "copy"], train={"steps": 9}, per_task={"copy": {"steps": "5", "seeds": 3}})
    assert [(cell.task, cell.train.steps) for cell in made.first()] == [("reverse", 9), *[("copy", 5)] * 3]


def test_every_cell_is_matched_and_resolved() -> None:
    made = planned(archs=["gqa", "transformer:d_model=16"])
    for entry in made.entries:
        cell = entry.cell("train", 1e-3)
        assert entry.match.solved.items() <= cell.arch_config.items()
        assert abs(entry.matching["deviation"]) <= 0.05
        assert cell.from_json(cell.to_json()) == cell
        assert cell.from_json(cell.to_json()).key == cell.key
    assert [entry.matching["label"] for entry in made.entries] == ["gqa", "transformer:d_model=16"]


def test_the_same_experiment_has_the_same_keys() -> None:
    assert planned().possible() == planned().possible()
    assert not planned().possible() & planned(train={"steps": 7}).possible()


def test_a_file_of_the_users_is_an_architecture() -> None:
    made = planned(archs=[ARCH], arch={"toy_arch": {"dropout": 0.3}})
    (cell,) = made.first()
    assert (cell.label, cell.arch, cell.arch_config["dropout"], cell.lr) == ("toy_arch", ARCH, 0.3, 1e-2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"archs": ["mambo"]}, "did you mean 'mamba'"),
        ({"tasks": ["reverze"]}, "'reverse'"),
        ({"arch": {"gqq": {"n_kv_heads": 1}}}, "unknown key 'gqq' in arch: did you mean 'gqa'"),
        ({"task": {"revers": {"symbols": 4}}}, "in task: did you mean 'reverse'"),
        ({"per_task": {"revers": {"steps": 4}}}, "in per_task: did you mean 'reverse'"),
        ({"per_task": {"reverse": {"stepz": 4}}}, "unknown key 'stepz' in per_task.reverse: did you mean 'steps'"),
        ({"per_task": {"reverse": {"steps": 0}}}, "per_task.reverse: train.steps must be at least 1"),
        ({"arch": {"gqa": {"n_kv_hed": 1}}}, "did you mean 'n_kv_heads'"),
        ({"task": {"reverse": {"simbols": 1}}}, "did you mean 'symbols'"),
        ({"archs": ["gqa:n_kv_heads=3"]}, "multiple of n_kv_heads=3"),
        ({"tasks": ["recall:keys=3"]}, "vocabulary is too small"),
        ({"tasks": ["text:path=/nowhere/x.txt"]}, "/nowhere/x.txt"),
        ({"archs": ["gqa", "gqa"]}, "share one name"),
        ({"archs": ["gqa:learning_rate=0"]}, "no learning rate above 0"),
        ({"train": {"accelerator": "gpu"}}, "needs a GPU"),
        ({"train": {"accelerator": "mps"}}, "needs an Apple GPU"),
        ({"per_task": {"reverse": {"devices": 2}}}, "cannot differ between tasks: set train.devices for all"),
        ({"archs": [{"label": "..", "arch": "gqa"}]}, "must hold a letter or digit"),
        ({"archs": [{"label": None, "arch": "gqa"}]}, "the label of arch gqa must be text, got None"),
        ({"budget": {"value": 10}}, "cannot meet the budget of 10 parameters"),
        ({"archs": ["/nowhere/x.py"]}, "no architecture file"),
        ({"tasks": ["/nowhere/x.py"]}, "no task file"),
    ],
)
def test_every_mistake_is_one_sentence_before_anything_runs(
    overrides: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert words in refusal(**overrides)


def test_a_file_that_does_not_import_is_the_users_mistake(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for text, words in (
        ("import nothing_of_this_name", "No module named"),
        ("x = (", "SyntaxError"),
        ("class Config: pass", "no architecture"),
    ):
        file.write_text(text)
        assert words in refusal(archs=[str(file)])


GRID = {"lr_grid": [1e-3, 1e-4, 1e-2, 1e-1], "seeds": 3}


def record(
    value: float | None, loss: float = 1.0, status: str = "done", metric: str = "token_accuracy"
) -> dict[str, Any]:
    rows = {str(length): {metric: value, "loss": loss} for length in (4, 8, 12, 16)}
    return {"status": status, "quality": {"validation": {**rows, "20": {metric: 1.0, "loss": 0.0}}}}


def test_selection_runs_the_grid_then_the_other_seeds_at_the_best_rate() -> None:
    made = planned(**GRID)
    first = made.first()
    assert [(cell.lr, cell.seed) for cell in first] == [(1e-4, 0), (1e-3, 0), (1e-2, 0), (1e-1, 0)]
    records = {cell.key: record(value) for cell, value in zip(first, (0.2, 0.9, 0.8, 0.1), strict=True)}
    assert [(cell.lr, cell.seed) for cell in made.rest(records)] == [(1e-3, 1), (1e-3, 2)]
    assert {cell.key for cell in made.rest(records)} < made.possible()
    assert made.entries[0].trainings == len(first) + len(made.rest(records))


def test_no_rate_came_through() -> None:
    made = planned(**GRID)
    assert made.rest({cell.key: record(0.9, status="nan") for cell in made.first()}) == []
    assert made.rest({}) == []


@pytest.mark.parametrize(
    ("metric", "values", "losses", "best"),
    [
        ("token_accuracy", (0.5, 0.6, 0.4), (1, 1, 1), 2),
        ("bits_per_byte", (0.5, 0.6, 0.4), (1, 1, 1), 3),
        ("token_accuracy", (1.0, 1.0, 1.0), (0.3, 0.2, 0.1), 3),
        ("token_accuracy", (None, 0.1, None), (1, 1, 1), 2),
        ("token_accuracy", (0.5, float("nan"), 0.4), (1, 1, 1), 1),
        ("token_accuracy", (None, None, None), (1, 1, 1), None),
    ],
)
def test_the_best_rate_is_the_one_with_the_best_validation(
    metric: str, values: tuple[Any, ...], losses: tuple[float, ...], best: int | None
) -> None:
    grid = {
        float(rate): record(value, loss, metric=metric)
        for rate, (value, loss) in enumerate(zip(values, losses, strict=True), start=1)
    }
    chosen = select(Score(metric, (4, 8)), {**grid, 9.0: None, 10.0: record(0.99, status="oom", metric=metric)})
    assert chosen["lr"] == best
    assert [candidate["lr"] for candidate in chosen["candidates"]] == [1, 2, 3, 9, 10]


def test_a_score_is_of_trained_lengths_alone() -> None:
    score = planned().entries[0].score
    assert (score.metric, score.lengths) == ("token_accuracy", (4, 8, 12, 16))
    assert score.value(record(0.25)) == 0.25


@pytest.mark.parametrize(("preset", "trainings"), [("smoke", 4), ("quick", 35), ("standard", 6 * 6 * (4 + 2))])
def test_presets_resolve_within_their_budget(preset: str, trainings: int) -> None:
    made = plan.plan(config.load(preset, {}))
    assert sum(entry.trainings for entry in made.entries) == trainings
    assert all(abs(entry.match.deviation or 0) <= 0.05 for entry in made.entries)


def test_more_devices_than_there_are_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    plan._check_device(Train(accelerator="auto", devices=2))
    plan._check_device(Train(accelerator="cpu", devices=4))
    with pytest.raises(UserError, match=r"train\.devices must be at most 2, the GPUs that are here, got 4"):
        plan._check_device(Train(accelerator="cuda", devices=4))


@pytest.mark.parametrize(
    "parts",
    [{"quality": None}, {"quality": {"validation": None}}, {"quality": {"validation": {"4": None}}},
     {"quality": {"validation": {"4": {"token_accuracy": "much"}}}}],
)  # fmt: skip
def test_a_record_without_scores_has_none(parts: dict[str, Any]) -> None:
    broken = {"status": "done", **parts}
    assert Score("token_accuracy", (4,)).value(broken) is None
    assert select(Score("token_accuracy", (4,)), {1.0: broken})["lr"] is None
    assert Score("token_accuracy", ()).value(record(0.5)) is None


def test_no_cell_shares_a_folder_with_the_overview_or_lies_outside() -> None:
    assert slug("_experiment") == "experiment"
    assert slug("../x") == "x"
    assert slug("..") == ""
