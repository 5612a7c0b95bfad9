"""Where the report's numbers come from: how each cell ended, what it ran on, and how to run it again."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable
from string import ascii_uppercase

import yaml

from experiments import config
from experiments.report import units
from experiments.report.records import Entry
from experiments.report.study import Contest, Study
from experiments.report.units import NOTHING, TIED, code, listing, score, text


def troubles(study: Study) -> list[str]:
    """Every cell that did not come to its end, why, and where its log is."""
    rows = [
        [*_name(entry), entry.status, text(str(entry.get("reason") or "no reason recorded")), _log(entry)]
        for entry in study.entries
        if entry.status != "done"
    ]
    return units.table(["architecture", "task", "cell", "end", "reason", "log"], rows, left=6) if rows else []


def stale(study: Study) -> list[str]:
    """Records of other sources, with the score that they had."""
    rows = [
        [*_name(entry), _old_score(entry, study), text(entry.stale), _log(entry)]
        for entry in study.entries
        if entry.stale is not None
    ]
    return units.table(["architecture", "task", "cell", "score then", "why", "log"], rows, left=6) if rows else []


def _old_score(entry: Entry, study: Study) -> str:
    contest = next(contest for contest in study.contests if contest.task == entry.task)
    found = Contest(entry.task, (Entry(entry.data, None),), contest.labels)
    known = entry.score(found.metric, found.trained) if found.lengths else None
    return NOTHING if known is None else f"{units.metric(found.metric).name} {score(known)}"


def environments(study: Study) -> list[str]:
    """One line for each different environment, under the letter that `ran` uses."""
    lines = []
    for letter, entry in _lettered(study.entries).items():
        versions = ", ".join(
            f"{name} {version}" for name, version in (entry.get("environment", "versions") or {}).items()
        )
        git = str(entry.get("environment", "git") or "")
        parts = [
            f"{entry.get('environment', 'device')} ({entry.get('environment', 'device_name')})",
            f"precision {entry.get('environment', 'precision')}",
            units.plural(int(entry.number("environment", "threads") or 0), "thread"),
            str(entry.get("environment", "platform")),
            versions,
            f"git {git[:12]}{'-dirty' if git.endswith('-dirty') else ''}" if git else "not a git checkout",
        ]
        lines.append(f"- **{letter}**: {text('; '.join(part for part in parts if part))}")
    return [*lines, ""] if lines else []


def ran(study: Study) -> list[str]:
    """What the cells ran on: those of a variant that differ by task and seed alone share a row."""
    letters = {_environment(entry): letter for letter, entry in _lettered(study.entries).items()}
    rows: dict[tuple[str, ...], list[Entry]] = {}
    for entry in study.entries:
        loss = code(str(entry.get("ran", "loss") or ""))
        letter = letters.get(_environment(entry), NOTHING)
        rows.setdefault((code(entry.label), entry.kind, _kernels(entry), loss, letter), []).append(entry)
    header = ["architecture", "kind", "cells of", "kernels", "loss", "on", "time in all"]
    lines = [[*key[:2], _cells(entries), *key[2:], _time(entries)] for key, entries in rows.items()]
    return units.table(header, lines, left=6) if rows else []


def _cells(entries: Iterable[Entry]) -> str:
    tasks = Counter(entry.task for entry in entries)
    return ", ".join(f"{code(task)} {number}" for task, number in tasks.items())


def data(study: Study) -> list[str]:
    """The data of each task and seed by fingerprint, and who saw other data than the rest."""
    seen: dict[tuple[str, int], dict[str, list[str]]] = {}
    for entry in study.entries:
        found = entry.get("data", "fingerprint")
        if found and entry.stale is None:
            prints = seen.setdefault((entry.task, entry.seed), {})
            prints.setdefault(str(found), []).append(code(entry.label))
    rows = [
        [code(task), str(seed), code(found), "all" if len(prints) == 1 else listing(dict.fromkeys(labels))]
        for (task, seed), prints in seen.items()
        for found, labels in prints.items()
    ]
    return units.table(["task", "seed", "fingerprint", "of"], rows, left=4) if rows else []


def _lettered(entries: Iterable[Entry]) -> dict[str, Entry]:
    """A letter for each different environment, with a record of it."""
    found = {_environment(entry): entry for entry in entries if entry.get("environment")}
    letters = (f"{letter}{number or ''}" for number in range(1000) for letter in ascii_uppercase)
    return dict(zip(letters, found.values(), strict=False))


def _environment(entry: Entry) -> str:
    return json.dumps(entry.get("environment"), sort_keys=True)


def _kernels(entry: Entry) -> str:
    if entry.get("ran") is None:
        return NOTHING
    kernels = entry.get("ran", "kernels") or {}
    said = [f"{name}: {', '.join(backends)}" for name, backends in kernels.items()]
    slow = [f"**slow fallback {code(entry.fallback)}**"] if entry.fallback else []
    return "; ".join([*map(text, said), *slow]) or "torch"


def _time(entries: Iterable[Entry]) -> str:
    return units.seconds(sum(entry.number("seconds") or 0 for entry in entries))


def missing(study: Study) -> list[str]:
    """A sentence on the planned training runs without a record, and on files that hold none."""
    lines = []
    by_run: dict[tuple[str, str], list[str]] = {}
    for label, task, seed in study.missing:
        by_run.setdefault((label, task), []).append(str(seed))
    if by_run:
        runs = (f"{code(label)} on {code(task)} (seed {', '.join(seeds)})" for (label, task), seeds in by_run.items())
        lines.append(f"Planned and not recorded yet: {listing(runs)}.")
    if study.unreadable:
        lines.append(f"No records, though among them: {listing(map(code, study.unreadable))}.")
    return [line for sentence in lines for line in (sentence, "")]


def again(study: Study) -> list[str]:
    """The commands that continue, repeat and show the experiment, and its configuration in full."""
    folder = shlex.quote(str(study.folder))
    file = shlex.quote(str(study.folder / "experiment.yaml"))
    commands = {
        f"archlab compare --config {file} --out {folder}": "continue: runs what is missing, then this report",
        f"archlab compare --config {file} --out runs/again": "everything anew, in a folder of its own",
        f"archlab report {folder}": "this report alone",
        f"archlab tensorboard {folder}": "the curves of every cell",
    }
    width = max(map(len, commands))
    lines = [f"{command:<{width}}  # {what}" for command, what in commands.items()]
    settings = yaml.safe_dump(config.to_dict(study.experiment), sort_keys=False, allow_unicode=True).splitlines()
    return ["```sh", *lines, "```", "", "The experiment in full:", "", "```yaml", *settings, "```", ""]


def _name(entry: Entry) -> list[str]:
    return [code(entry.label), code(entry.task), f"seed{TIED}{entry.seed}" if entry.kind == "train" else entry.kind]


def _log(entry: Entry) -> str:
    path = str(entry.get("log") or "")
    return f"[{code(path)}]({path})" if path and not set(path) & set("()<> ") else code(path)
