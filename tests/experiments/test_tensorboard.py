"""TensorBoard as users meet it: a server over real events, asked over HTTP and, where there is one, by a browser."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import Archlab
from matplotlib import pyplot

from experiments import tasks, tensorboard, training
from experiments.cell import Cell
from experiments.config import Train
from experiments.errors import UserError

Ask = Callable[..., Any]
TASK = {"train_lengths": [3, 4], "test_lengths": [4, 6]}
ARCHS: dict[str, dict[str, Any]] = {
    "gqa": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1},
    "seq2seq": {"d_model": 16, "n_layers": 1, "attention": "bahdanau"},
}
RUNS = {f"{arch}/reverse/seed0-lr0.01" for arch in ARCHS}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def cell(arch: str) -> Cell:
    return Cell(
        kind="train",
        label=arch,
        arch=arch,
        arch_config=ARCHS[arch],
        task_label="reverse",
        task="reverse",
        task_config=asdict(tasks.make("reverse", **TASK)),
        lr=0.01,
        train=Train(steps=20, batch_size=8, val_every=10, val_examples=8, test_examples=8),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment's folder after two short runs, with one figure of a report."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "cells").mkdir()
    for arch in ARCHS:
        training.train(cell(arch), folder, lambda status: None)
    (folder / "figures").mkdir()
    figure, axes = pyplot.subplots(figsize=(3, 2))
    axes.plot([1, 2])
    figure.savefig(folder / "figures" / "quality.png")
    pyplot.close(figure)
    tensorboard.write_overview(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, command: Path) -> Iterator[str]:
    """The address that `archlab tensorboard` prints, while it runs."""
    server = subprocess.Popen(
        [command, "tensorboard", folder, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    try:
        printed = next((line for line in server.stdout if "http" in line), "")
        found = re.search(r"http://localhost:\d+/", printed)
        assert found, f"no address in {printed!r}"
        yield found.group()
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=30)[0]
    assert server.returncode == 130, rest


@pytest.fixture(scope="module")
def ask(url: str) -> Ask:
    """The JSON that an endpoint answers, asked until TensorBoard has read all runs."""
    get = functools.partial(_get, url)
    deadline = time.monotonic() + 60
    while set(get("runs")) != RUNS | {"_experiment"}:
        assert time.monotonic() < deadline, get("runs")
        time.sleep(0.2)
    return get


def _get(url: str, endpoint: str, post: dict[str, Any] | None = None, raw: bool = False, **query: Any) -> Any:
    address = f"{url}data/{endpoint}?{urllib.parse.urlencode(query)}"
    body = None if post is None else json.dumps(post).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
    return content if raw else json.loads(content)


def test_curves_of_all_architectures_overlay(ask: Ask) -> None:
    """The same tag in one run per cell: that is what puts them into one chart."""
    tags = ask("plugin/scalars/tags")
    for run in RUNS:
        assert {"reverse/train/loss", "reverse/train/lr", "reverse/train/grad_norm", "reverse/val/loss"} <= set(
            tags[run]
        )
        assert {"reverse/train/tokens_per_second", "reverse/val/accuracy"} <= set(tags[run])
        assert any(tag.startswith("reverse/train/memory") for tag in tags[run])
        points = ask("plugin/scalars/scalars", run=run, tag="reverse/val/loss")
        assert [step for _, step, _ in points] == [10, 20]
        assert all(value > 0 for _, _, value in points)


def test_one_chart_per_task_has_every_architecture(ask: Ask) -> None:
    layout = ask("plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    assert list(charts) == ["reverse: accuracy"]
    for run in RUNS:
        found = ask("plugin/custom_scalars/scalars", run=run, tag=charts["reverse: accuracy"][0])
        assert found["regex_valid"]
        assert list(found["tag_to_events"]) == ["reverse/val/accuracy"]
        assert len(found["tag_to_events"]["reverse/val/accuracy"]) == 2


def test_images_are_the_report_and_the_alignments(ask: Ask) -> None:
    tags = ask("plugin/images/tags")
    assert list(tags["_experiment"]) == ["report/quality"]
    assert all(any("alignment" in tag for tag in tags[run]) for run in RUNS)
    for run, tag in [("_experiment", "report/quality"), *((run, next(iter(tags[run]))) for run in sorted(RUNS))]:
        [image] = ask("plugin/images/images", run=run, tag=tag, sample=0)
        content = ask("plugin/images/individualImage", raw=True, **dict(urllib.parse.parse_qsl(image["query"])))
        assert content.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", content[16:24])) >= 100  # width and height, in pixels


def test_hparams_compare_the_runs_by_their_final_scores(ask: Ask) -> None:
    experiment = ask("plugin/hparams/experiment", post={"experimentName": ""})
    names = {parameter["name"] for parameter in experiment["hparamInfos"]}
    metrics = {metric["name"]["tag"] for metric in experiment["metricInfos"]}
    assert "final/accuracy" in metrics
    assert names
    wanted = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": {"tag": "final/accuracy", "group": ""}}],
        "startIndex": 0,
        "sliceSize": 100,
    }
    groups = ask("plugin/hparams/session_groups", post=wanted)["sessionGroups"]
    assert len(groups) == len(RUNS)
    for group in groups:
        [score] = [value["value"] for value in group["metricValues"] if value["name"]["tag"] == "final/accuracy"]
        assert 0 <= score <= 1


def test_the_configuration_is_there_as_text(ask: Ask) -> None:
    tags = ask("plugin/text/tags")
    for run in RUNS:
        [tag] = tags[run]
        [text] = ask("plugin/text/text", run=run, tag=tag)
        assert "reverse" in text["text"]


def test_a_browser_sees_the_runs(url: str, ask: Ask, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium here: .ci/run installs it")
    page = _page(browser, f"{url}#timeseries", tmp_path)
    assert all(run in page for run in RUNS)
    assert 'title="final/accuracy"' in page, "a card with its curves"


def _page(browser: str, address: str, profile: Path) -> str:
    """The page as a browser without a window has built it, after the given time of its own clock."""
    switches = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
        *("--virtual-time-budget=20000", "--dump-dom"),
    ]
    started = subprocess.Popen(
        [browser, *switches, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        return started.communicate(timeout=120)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def test_the_server_listens_on_this_machine_only(url: str) -> None:
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.is_file()]
    if not tables:
        pytest.skip("no /proc/net here to read the listening sockets from")
    port = f":{urllib.parse.urlparse(url).port:04X}"
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    listening = {address.removesuffix(port) for _, address, _, state, *_ in rows if state == "0A" and port in address}
    assert listening
    assert listening <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1, as the kernel writes them


def test_writing_the_overview_again_replaces_it(folder: Path) -> None:
    place = folder / "tb" / tensorboard.OVERVIEW
    before = [file.name for file in place.iterdir()]
    tensorboard.write_overview(folder)
    assert len(before) == len(list(place.iterdir())) == 1


def test_text_is_charted_in_bits_per_byte(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for task, name in (("text", "bits_per_byte"), ("my.task", "exact_match")):
        with SummaryWriter(str(tmp_path / "tb" / "gqa" / task / "seed0")) as writer:
            writer.add_scalar(f"{task}/val/accuracy", 0.5, 1)
            writer.add_scalar(f"{task}/val/{name}", 0.5, 1)
    assert tensorboard.layout(tmp_path)["Validation"] == {
        "my.task: accuracy": ["Multiline", [r"^my\.task/val/accuracy$"]],
        "text: bits_per_byte": ["Multiline", ["^text/val/bits_per_byte$"]],
    }


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tb").mkdir()
    with pytest.raises(UserError, match="holds no TensorBoard events"):
        tensorboard.launch(tmp_path)


def test_a_port_in_use_is_refused(folder: Path, archlab: Archlab) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = archlab("tensorboard", folder, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("archlab: TensorBoard could not start: ")
    assert str(port) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="between 0 and 65535, got 70000"):
        tensorboard.launch(folder, 70000)
