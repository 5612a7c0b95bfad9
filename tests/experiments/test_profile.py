"""The profiler's plan, rows and findings: what does not need a measurement to be checked."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments import cli, options
from experiments.errors import UserError
from experiments.profile import analysis, board, cards, config, figures, findings, plan, report, rows
from experiments.profile.frontier import MOST, RESOLUTION, Frontier, search
from experiments.profile.point import Point
from experiments.profile.predict import polynomial
from experiments.profile.rows import Row
from experiments.profile.study import Plan, Study, _end

SERIES = ("gqa", "prefill", 1)


def point(context: int = 64, **changes: Any) -> Point:
    """A measured point of a tiny gqa."""
    settings: dict[str, Any] = {
        "kind": "measured",
        "label": "gqa",
        "arch": "gqa",
        "arch_config": {"d_model": 16, "n_layers": 1},
        "vocab_size": 32,
        "dtype": "float32",
        "device": "cpu",
        "mode": "train",
        "contexts": (context,),
        "seconds": 0.0,
    }
    return Point(**{**settings, **changes})


def row(context: int, size: int | None = None, speed: float | None = None, **changes: Any) -> Row:
    """A measured row of gqa's prefill."""
    made = Row("gqa", "gqa", "prefill", 1, context, status="done")
    if size is not None:
        made.measured["tracked"] = {"peak_bytes": size, "needed_bytes": size, "split": {"rest": size}}
    if speed is not None:
        made.measured["speed"] = {"median": speed, "low": speed, "high": speed}
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("given", "tokens"), [("4096", 4096), (4096, 4096), ("4k", 4096), ("1M", 2**20), ("0.5k", 512)]
)
def test_a_context_is_written_as_people_do(given: Any, tokens: int) -> None:
    assert config.tokens(given) == tokens


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--contexts four", "a context must be a whole number of at least 8 tokens such as 4096 or 4k, got 'four'"),
        ("--contexts 4", "a context must be a whole number of at least 8 tokens"),
        ("--archs gpa", "unknown architecture or model 'gpa': did you mean 'gqa'?"),
        ("--archs llama-3-9b", "unknown architecture or model 'llama-3-9b': did you mean 'llama-3-8b'?"),
        ("--card h10", "unknown card 'h10': did you mean 'h100'?"),
        ("--config quik", "no preset or file 'quik': did you mean 'quick'?"),
        ("--memory_limit lots", "memory_limit must be auto, none, or a size"),
        ("--modes trian", "modes must be a list, each item one of train, prefill, decode"),
        ("--rows 0", "rows must be at least 1, got 0"),
        ("--timeout 0", "timeout must be above 0 seconds"),
        ("--frontier", "frontier needs a limit that contexts are to fit: --memory_limit 16GiB, or --card h100"),
        ("--trace gqa,4k", "trace must be an architecture, a mode and a context: gqa,train,4k"),
        ("--archs gqa --trace gpa,train,4k", "trace names 'gpa', which is not profiled: did you mean 'gqa'?"),
        ("--pretrained nowhere", "nowhere holds no checkpoint: expected config.json of model_type llama"),
        ("--retry faild", "unknown status to retry 'faild': did you mean 'failed'?"),
        ("--chunk few", "chunk must be a whole number of at least 8 tokens such as 4096 or 4k, got 'few'"),
        ("--beyond 4k", "--beyond is no setting: expected --beyond.NAME A,B"),
        ("--beyond.mamba", "--beyond.mamba expects a value: --beyond.NAME A,B"),
        ("--beyond.mamba long", "a context must be a whole number of at least 8 tokens"),
        ("--beyonds.mamba 4k", "unknown option --beyonds.mamba: did you mean '--beyond.NAME'?"),
        ("--arch.gqa.n_heds 4", "unknown key 'n_heds' in gqa: did you mean 'n_heads'?"),
    ],
)
def test_what_cannot_be_profiled_is_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profile", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


def test_an_option_may_be_written_with_dashes() -> None:
    words = ["profile", "--memory-limit", "300MB", "--decode-rows=1,2", "--vocab_size", "64"]
    command, given = options.parse(words)
    assert command == "profile"
    assert given == {"memory_limit": "300MB", "decode_rows": (1, 2), "vocab_size": 64}


def test_every_key_is_an_option() -> None:
    words = "--beyond.mamba 128k,1M --beyond../own.py=64k --chunk 64k --budget.by none"
    _, given = options.parse(["profile", *words.split()])
    profile = config.load(None, given)
    assert profile.beyond == {"mamba": ["128k", "1M"], "./own.py": ["64k"]}
    assert config.measured_contexts(profile, "mamba")[-2:] == [2**17, 2**20]
    assert (profile.chunk, config.load(None, {}).chunk, profile.budget.value) == (2**16, 0, 1_000_000)
    text = " ".join(options.commands(options.build_parser("profile"))["profile"].format_help().split())
    assert "default: 1000000)" in text  # a profile's budget, not a comparison's


def test_beyond_may_name_what_is_left_out_but_nothing_unknown() -> None:
    given = {"archs": ["gqa"], "contexts": ["16"], "budget": {"by": "none"}}
    assert [item.label for item in plan.items(config.load(None, {**given, "beyond": {"mamba": ["1M"]}}))] == ["gqa"]
    with pytest.raises(UserError, match="beyond names 'mambo', which is no architecture: did you mean 'mamba'"):
        plan.items(config.load(None, {**given, "beyond": {"mambo": ["1M"]}}))


def test_the_plan_has_a_point_for_each_context_and_mode() -> None:
    profile = config.load(None, {"archs": ["gqa"], "contexts": ["16", "32"], "predicted": ["1k"], "device": "cpu"})
    found = plan.items(profile)
    measured, predicted = plan.measurements(profile, found), plan.predictions(profile, found)
    assert [p.contexts for p in measured] == [(16,)] * 4 + [(32,)] * 4
    assert {(p.mode, p.rows) for p in measured} == {("train", 1), ("prefill", 1), ("decode", 1), ("decode", 8)}
    assert [p.contexts for p in predicted] == [(16, 32, 1024)] * 4
    assert len({p.key for p in [*measured, *predicted]}) == 12
    assert Point.from_json(measured[0].to_json()) == measured[0]


def test_sizes_meet_one_budget() -> None:
    profile = config.load("quick", {"modes": ["train"]})
    from experiments import match

    for item in plan.items(profile):
        import archs

        core = match.core_parameters(archs.build(item.arch, item.vocab_size, **item.settings))
        assert abs(core / 60_000 - 1) <= match.MET


def test_a_longer_context_is_not_tried_after_one_that_ran_out() -> None:
    points = [point(context) for context in (16, 32, 64)]
    records = {
        points[0].key: {"status": "done", "reason": None, "result": {"context": 16}},
        points[1].key: {"status": "oom", "reason": "out of memory: it said so", "result": None},
    }
    found = rows.assemble(points, records)
    assert [r.status for r in found] == ["done", "oom", "not tried"]
    assert found[2].reason == "oom at 32"
    assert rows.stopped(points[2], found) is found[1]
    assert rows.stopped(points[1], found) is None


def test_growth_laws() -> None:
    linear = [row(2**power, 1000 * 2**power) for power in range(8, 14)]
    square = [row(2**power, 3 * 4**power) for power in range(8, 14)]
    constant = [row(2**power, 1000) for power in range(8, 14)]
    assert analysis.exponent(linear) == pytest.approx(1)
    assert analysis.exponent(square) == pytest.approx(2)
    assert analysis.exponent(constant) == pytest.approx(0)
    assert analysis.exponent(linear[:1]) is None


def test_a_crossover_is_named_once_and_only_where_it_lasts() -> None:
    falling = [row(2**power, speed=2.0 ** (20 - power)) for power in range(8, 14)]
    steady = [row(2**power, speed=2.0**9.5, label="mamba", arch="mamba") for power in range(8, 14)]
    (sentence,) = analysis.crossovers([*falling, *steady])
    assert sentence == "mamba overtakes gqa in prefill at about 1,400 tokens"
    assert analysis.crossovers(falling) == []
    assert analysis.crossovers([*falling[:1], *steady[:1]]) == []
    for noisy in (steady[0], steady[-1]):
        spread = {"median": 2.0**9.5, "low": 2.0**5, "high": 2.0**15}
        blurred = [replace(one, measured={"speed": spread}) if one is noisy else one for one in steady]
        assert len(analysis.crossovers([*falling, *blurred])) == (noisy is steady[0])
    for at, other in ((1, 2.0**15), (4, 1.0)):  # ahead for a while before, behind for a while after
        fro = replace(steady[at], measured={"speed": {**steady[at].measured["speed"], "median": other}})
        assert analysis.crossovers([*falling, *steady[:at], fro, *steady[at + 1 :]]) == []


def test_speeds_that_something_else_disturbed_are_told() -> None:
    calm, shaken, single = (row(2**power, speed=100.0) for power in (8, 9, 10))
    calm.measured["speed"] |= {"samples": 5, "high": 140.0}
    shaken.measured["speed"] |= {"samples": 5, "high": 160.0}
    single.measured["speed"] |= {"samples": 1}
    assert analysis.unsteady([calm, shaken, single]) == (1, 2)
    study = Study(config.Profile(), Plan([], [], []), {})
    study.rows = [calm, shaken, single]
    assert "1 of 2 speeds were unsteady, quartiles more than a factor of 1.5 apart" in report.compose(study, {})


def test_disagreement_names_the_worst() -> None:
    good = row(64, 1000, predicted={"peak_bytes": 1000})
    bad = row(128, 1000, predicted={"peak_bytes": 1030})
    worst = analysis.disagreement([good, bad])
    assert worst is not None
    assert worst[0] == pytest.approx(0.03)
    assert worst[1] is bad


def test_the_polynomial_is_exact() -> None:
    assert polynomial({x: 3 * x * x + 5 * x + 7 for x in (64, 128, 192)}, 2**20) == 3 * 2**40 + 5 * 2**20 + 7


def test_cards_have_their_published_peaks() -> None:
    assert cards.card("h100").peak("bfloat16") == 989.4e12
    assert cards.card("a100").memory == 80e9
    assert cards.card("4090").peak("float32") == 82.6e12
    assert all(card.source for card in cards.CARDS.values())
    with pytest.raises(UserError, match="did you mean"):
        cards.card("h20")


def test_csv_has_a_row_per_context_and_a_report_says_how_it_ended() -> None:
    found = [row(64, 1000, 5.0), row(128, status="oom", reason="out of memory: full"), row(256, status="not tried")]
    lines = report.table_csv(found).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("architecture,mode,sequences,context,status")
    study = Study(config.Profile(archs=("gqa",)), Plan([], [], []), {})
    study.rows = found
    text = report.compose(study, {})
    assert "out of memory: full" in text
    assert "not tried" in text
    assert "Not modelled" in text


@pytest.mark.parametrize(
    "needed",
    [lambda context: 1000 + 8 * context, lambda context: 500 + context**2, lambda context: context // 1000 * 5000],
)
def test_the_frontier_is_the_last_context_that_fits(needed: Callable[[int], int]) -> None:
    limit, asked = 10**8 + 7, []

    def counted(context: int) -> int:
        asked.append(context)
        return needed(context)

    found = search(counted, limit)
    assert needed(found) <= limit < needed(found + found // RESOLUTION + 1)
    assert len(asked) <= 20


def test_a_frontier_may_lie_nowhere_or_beyond_all() -> None:
    assert search(lambda context: 10**9, 10**8) == 0
    assert search(lambda context: 10**6, 10**8) == MOST


def test_a_frontier_is_confirmed_by_at_most_two_measurements() -> None:
    def after(**ends: str) -> int | None:
        return Frontier(SERIES, 10**9, 1000, {int(key[1:]): end for key, end in ends.items()}).next

    assert after() == 1000
    assert after(_1000="done") == 1150
    assert after(_1000="oom") == 750
    assert after(_1000="timeout") is None
    assert after(_1000="done", _1150="oom") is None
    assert after(_1000="oom", _750="done") is None
    assert Frontier(SERIES, 10**9, 1000, {1000: "oom", 750: "done"}).fits == 750
    assert Frontier(SERIES, 10**9, 1000, {1000: "oom", 750: "done"}).fails == 1000
    assert Frontier(SERIES, 10**9, 0, {}).next is None
    assert Frontier(SERIES, 10**9, MOST, {}).next is None


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ({}, "not measured"),
        ({1000: "done", 1150: "oom"}, "confirmed: 1,000 fits, 1,150 does not"),
        ({1000: "done", 1150: "done"}, "it fits, how much more does is open: 1,000 fits, 1,150 fits"),
        ({1000: "oom", 750: "done"}, "too far: 750 fits, 1,000 does not"),
        (
            {1000: "timeout"},
            "unconfirmed: 1,000 ended as timeout; a longer --timeout with --retry timeout tries again",
        ),
    ],
)
def test_what_became_of_a_predicted_frontier_is_said(ends: dict[int, str], told: str) -> None:
    profile = config.Profile(frontier=True, memory_limit="1GB")
    predicted = point(64, kind="predicted", limit=10**9, mode="prefill")
    trials = [plan.trial(profile, predicted, context) for context in ends]
    records: dict[str, Any] = {
        trial.key: {"status": end, "reason": None} for trial, end in zip(trials, ends.values(), strict=True)
    }
    known: dict[str, Any] = {predicted.key: {"status": "done", "frontier": 1000, "results": []}, **records}
    (sentence,) = findings.findings(Study(profile, Plan([], [predicted], [], trials), known))
    assert sentence == f"gqa prefill is predicted to fit 954\N{NO-BREAK SPACE}MiB up to 1,000 tokens; {told}"


def test_what_was_passed_through_fits_though_there_was_no_time_to_repeat_it() -> None:
    passed = {"context": 1000, "process_bytes": 10**8, "tracked": None}
    assert _end({"status": "timeout", "result": passed}) == "done"
    assert _end({"status": "timeout", "result": {"context": 1000}}) == "timeout"
    assert _end({"status": "timeout", "result": None}) == "timeout"
    assert _end({"status": "oom", "result": passed}) == "oom"


def test_the_bar_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, terminal = [0.0], io.StringIO()
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    first, second, third = (point(context) for context in (16, 32, 64))
    done = {"kind": "measured", "status": "done", "result": {"speed": {"median": 5.0}}, "seconds": 10.0}
    with board.Board(Console(file=terminal, force_terminal=True, width=200)) as shown:
        shown.expect([first, second, third], 1)
        shown.progress({})
        assert "0/3, time left unknown yet" in shown.bars.tasks[0].fields["text"]
        shown.started(first)
        now[0] = 10.0
        shown.ended(first, done)
        shown.progress({})
        assert shown.bars.tasks[0].fields["text"] == "1/3, 0:00:40 left"  # each context takes twice the time
        shown.skipped(third)
        shown.progress({})
        assert shown.bars.tasks[0].fields["text"] == "1/2, 0:00:20 left"
    assert "gqa · train · 16" in terminal.getvalue()


@pytest.mark.parametrize("series", [1, 2, 3, 4])
def test_there_is_a_panel_for_every_mode(series: int) -> None:
    modes = [("train", 1), ("prefill", 1), ("decode", 1), ("decode", 8)][:series]
    found = [row(64 * 2**i, 1000 * 2**i, 5.0, mode=mode, rows=count) for mode, count in modes for i in range(4)]
    frontiers = [Frontier(("gqa", mode, count), 5000, 300, {300: "done", 345: "oom"}) for mode, count in modes]
    drawn = figures.draw(found, 5000, frontiers)
    assert {name: len(figure.axes) for name, figure in drawn.items()} == {
        f"context-{name}": series for name in ("memory", "speed", "split")
    }


def test_a_process_that_holds_more_than_was_tracked_is_remarked() -> None:
    near, far = row(64, 10**9), row(128, 10**9)
    near.measured["process_bytes"], far.measured["process_bytes"] = 11 * 10**8, 13 * 10**8
    assert near.gap is None
    assert far.gap == pytest.approx(0.3)
    decoded = row(256, 10**8, mode="decode")
    decoded.measured["tracked"] |= {"before_bytes": 10**9, "needed_bytes": 10**9}
    decoded.measured |= {"process_bytes": 10**8, "process_before_bytes": 13 * 10**8}
    assert decoded.gap == pytest.approx(0.3)
    decoded.measured |= {"process_bytes": 3 * 10**8, "process_before_bytes": 10**9}
    assert decoded.gap == pytest.approx(2)
    study = Study(config.Profile(), Plan([], [], []), {})
    study.rows = [near, far]
    assert (
        "differs from what was tracked or predicted by more than 10% and 64\N{NO-BREAK SPACE}MiB, by up to +30% here"
        in report.compose(study, {})
    )
