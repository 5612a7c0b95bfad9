"""Loading experiments: presets, files, overrides, and one sentence for everything that is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from experiments import config, strict
from experiments.config import Experiment, Train
from experiments.errors import UserError


def refusal(source: str | None = None, **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        config.load(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_is_the_defaults() -> None:
    assert config.load(None, {}) == Experiment()


def test_overrides_are_merged_key_by_key_and_lists_replaced() -> None:
    before = config.load("quick", {})
    after = config.load("quick", {"tasks": ["copy"], "train": {"steps": 7}, "per_task": {"text": {"steps": 9}}})
    assert after.tasks == ("copy",)
    assert after.train == Train(**{**before.train.__dict__, "steps": 7})
    assert after.per_task["text"] == {**before.per_task["text"], "steps": 9}
    assert after.archs == before.archs


def test_a_file_is_loaded_like_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seeds: 5\ntrain: {precision: 32, warmup: 1e-1}\nlr: 1e-3\n")
    experiment = config.load(str(file), {"seeds": 6})
    assert (experiment.seeds, experiment.lr, experiment.train.precision, experiment.train.warmup) == (
        6,
        1e-3,
        "32",
        0.1,
    )


@pytest.mark.parametrize("preset", config.presets())
def test_what_is_written_is_read_back(preset: str, tmp_path: Path) -> None:
    experiment = config.load(preset, {"archs": ["gqa", {"label": "one", "arch": "gqa", "n_kv_heads": 1}]})
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(config.to_dict(experiment)))
    assert config.load(str(file), {}) == experiment


def test_presets_are_found_by_name() -> None:
    assert {"quick", "smoke", "standard"} <= set(config.presets())
    assert config.load("smoke", {}).name == "smoke"


def test_numbers_as_text_are_numbers() -> None:
    experiment = config.load(None, {"seeds": "2", "lr": "3e-4", "lr_grid": "", "timeout": 5})
    assert (experiment.seeds, experiment.lr, experiment.timeout) == (2, 3e-4, 5.0)


def test_a_list_may_be_text_with_commas_that_brackets_protect() -> None:
    experiment = config.load(None, {"archs": "gqa, mamba:d_conv=2", "tasks": "reverse:test_lengths=[4,8],copy"})
    assert experiment.archs == ("gqa", "mamba:d_conv=2")
    assert experiment.tasks == ("reverse:test_lengths=[4,8]", "copy")
    assert config.split_list("a:x=[[1,2],[3,4]],b:y=[5,6],") == ["a:x=[[1,2],[3,4]]", "b:y=[5,6]"]


def test_a_file_of_the_users_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = config.load(None, {"archs": ["./mine.py:d_model=8", {"label": "x", "arch": "mine.py"}, "gqa"]})
    path = str(tmp_path / "mine.py")
    assert experiment.archs == (f"{path}:d_model=8", {"label": "x", "arch": path}, "gqa")


def test_data_of_the_users_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """experiment.yaml is all that is needed to run it again, from wherever."""
    monkeypatch.chdir(tmp_path)
    entry = {"label": "mine", "task": "text", "path": "b.txt"}
    experiment = config.load(None, {"tasks": ["text", entry], "task": {"text": {"path": "a.txt", "max_bytes": 9}}})
    assert experiment.task == {"text": {"path": str(tmp_path / "a.txt"), "max_bytes": 9}}
    assert experiment.tasks == ("text", {**entry, "path": str(tmp_path / "b.txt")})
    assert config.load(None, {"task": {"text": {"path": ""}}}).task == {"text": {"path": ""}}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"sedes": 3}, ["'sedes'", "did you mean 'seeds'?"]),
        ({"train": {"stpes": 3}}, ["'stpes' in train", "did you mean 'steps'?"]),
        ({"zzz": 3}, ["'zzz'", "expected one of", "lr_grid"]),
        ({"train": {"steps": "many"}}, ["train.steps must be an integer", "'many'"]),
        ({"seeds": True}, ["seeds must be an integer", "True"]),
        ({"lr": "fast"}, ["lr must be a number or null", "'fast'"]),
        ({"train": {"precision": "64"}}, ["train.precision must be one of 32, bf16-mixed", "'64'"]),
        ({"train": 5}, ["train must hold settings", "5"]),
        ({"cost": {"contexts": ["x"]}}, ["cost.contexts must be a list, each item an integer"]),
        ({"per_task": {"text": 4}}, ["per_task must be a mapping of names to settings"]),
        ({"seeds": 0}, ["seeds must be at least 1", "0"]),
        ({"train": {"steps": 0}}, ["train.steps must be at least 1"]),
        ({"train": {"warmup": 1.0}}, ["train.warmup must be below 1"]),
        ({"timeout": 0}, ["timeout must be above 0"]),
        ({"budget": {"value": float("nan")}}, ["budget.value must be a finite number", "nan"]),
        ({"cost": {"seconds": float("inf")}}, ["cost.seconds must be a finite number", "inf"]),
        ({"lr": float("inf")}, ["lr must be a finite number"]),
        ({"lr_grid": [1.0, 2.0, 3.0, float("nan")]}, ["lr_grid", "above 0"]),
        ({"train": {"devices": 3}}, ["train.batch_size must be a multiple of the 3 devices", "64"]),
        ({"archs": []}, ["archs must be a list of at least one"]),
        ({"tasks": []}, ["tasks must be a list of at least one"]),
        ({"cost": {"contexts": [1]}}, ["cost.contexts", "2 tokens"]),
        ({"lr_grid": [1e-3, 1e-2]}, ["lr_grid must hold at least 4 different rates"]),
        ({"lr_grid": [1e-3, 1e-2, 1e-1, -1.0]}, ["lr_grid", "above 0"]),
        ({"lr": 1e-3, "lr_grid": [1e-4, 1e-3, 1e-2, 1e-1]}, ["lr and lr_grid exclude each other"]),
    ],
)
def test_a_mistake_is_one_sentence(overrides: dict[str, Any], words: list[str]) -> None:
    message = refusal(**overrides)
    assert all(word in message for word in words), message


def test_an_unknown_preset_names_the_nearest() -> None:
    assert "did you mean 'quick'?" in refusal("quik")
    assert "'/nowhere/x.yaml'" in refusal("/nowhere/x.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "\x00"])
def test_a_file_without_settings_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert "bad.yaml" in refusal(str(file))


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(str(tmp_path))


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": 1}, "c": [1]}, {"a": {"d": 2}, "c": [2]}
    assert config.merge(base, over) == {"a": {"b": 1, "d": 2}, "c": [2]}
    assert (base, over) == ({"a": {"b": 1}, "c": [1]}, {"a": {"d": 2}, "c": [2]})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Types that an architecture's Config has."""

    size: int | None = 4
    rate: float = 0.5
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    lengths: tuple[int, ...] = (1,)
    bounds: tuple[int, int] = (1, 2)


def test_text_takes_the_type_of_its_field() -> None:
    built = strict.build(Sample, {"size": "12", "rate": "1e3", "flag": "true", "kind": "b", "lengths": 3}, "sample")
    assert built == Sample(size=12, rate=1000.0, flag=True, kind="b", lengths=(3,))
    assert strict.build(Sample, {"size": "null"}).size is None


def test_the_error_names_what_is_built() -> None:
    with pytest.raises(UserError, match=r"^sample\.size must be an integer or null, got 'x'$"):
        strict.build(Sample, {"size": "x"}, "sample")
    with pytest.raises(UserError, match=r"^bounds must be a list of 2: an integer, an integer, got 3$"):
        strict.build(Sample, {"bounds": 3})


def test_an_empty_name_is_no_configuration() -> None:
    assert "cannot be read" in refusal("")
