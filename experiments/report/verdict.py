"""What the report concludes, in sentences: who leads where, what is not distinguishable, and on what terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.report import stats, units
from experiments.report.costs import expense
from experiments.report.records import Entry
from experiments.report.stats import MARGIN, Interval, Outcome, Pair
from experiments.report.study import Contest, Study
from experiments.report.units import TIED, code, listing, plural

RATES = {
    "train_tokens_per_second": "fastest training",
    "decode_tokens_per_second": "fastest generation",
}
SIZES = {"peak_bytes": "least memory in training", "state_bytes": "smallest state"}
BUDGETS = {
    "parameters": "{} trainable parameters without embedding and readout",
    "flops": "{} FLOPs per token, forward",
    "state": "{} bytes of state after the longest trained source",
}
PHRASES: dict[Outcome, str] = {
    "level": "Not distinguishable from it",
    "small": f"Less than {MARGIN:g} behind it, which counts as no win",
    "uncorrected": "Behind it only before correction for {}",
    "different": "Behind it",
}
"""How the others of a task stand to the best."""


@dataclass(frozen=True)
class Standing:
    """Who stands where in one task at some lengths."""

    scores: dict[str, Interval]
    """Of the variants that take part, the best first."""
    pairs: list[Pair]
    left_out: dict[str, str]
    """Variant -> why it takes no part."""

    def against(self, leader: str, verdict: Outcome) -> list[str]:
        """The other variants whose comparison with the leader came out so."""
        found = {pair.first if pair.second == leader else pair.second: pair.verdict for pair in self._of(leader)}
        return [label for label in self.scores if found.get(label) == verdict]

    def _of(self, label: str) -> list[Pair]:
        return [pair for pair in self.pairs if label in (pair.first, pair.second)]


def standing(contest: Contest, lengths: Sequence[int]) -> Standing:
    """Rank and compare the variants that have two seeds or more, none of which ended otherwise than well."""
    scores = contest.scores(contest.metric, lengths)
    left_out = {label: _why(entries, contest) for label, entries in contest.broken.items()}
    left_out |= {label: "one seed" for label, row in scores.items() if len(row) < 2 and label not in left_out}
    taking_part = {label: row for label, row in scores.items() if label not in left_out}
    sign = -1 if units.metric(contest.metric).lower_is_better else 1
    found = {label: stats.interval(list(row.values())) for label, row in taking_part.items()}
    known = {label: interval for label, interval in found.items() if interval is not None}
    ranked = sorted(known, key=lambda label: sign * known[label].mean, reverse=True)
    return Standing({label: known[label] for label in ranked}, stats.compare(taking_part), left_out)


def _why(entries: Sequence[Entry], contest: Contest) -> str:
    ended = Counter(entry.status for entry in entries)
    runs = len(entries) + len(contest.runs.get(entries[0].label, []))
    return listing(f"{number} of {plural(runs, 'seed')} ended as {status}" for status, number in ended.items())


def verdict(contest: Contest) -> list[str]:
    """What may be said of one task: sentences in Markdown, the first with the verdict."""
    task = code(contest.task)
    if contest.refusal:
        return [f"**No verdict on {task}**: {units.text(contest.refusal)}. Such runs share no table."]
    if not contest.runs:
        return [f"**No verdict on {task}**: no run of today's sources has come to its end."]
    if contest.seeds < 2:
        return [f"**No verdict on {task}**: one seed is a curve and no verdict."]
    said = [_quality(contest, contest.trained)]
    return said if contest.beyond is None else [*said, _quality(contest, [contest.beyond])]


def _quality(contest: Contest, lengths: Sequence[int]) -> str:
    stand = standing(contest, lengths)
    task, where = code(contest.task), place(contest, lengths)
    if len(stand.scores) < 2:
        return f"**No verdict on {task}** {where}: fewer than two architectures have two seeds.{_left_out(stand)}"
    leader = next(iter(stand.scores))
    others = {outcome: stand.against(leader, outcome) for outcome in PHRASES}
    won = not any(others[outcome] for outcome in ("level", "small", "uncorrected"))
    scored = f"{units.metric(contest.metric).name} {units.plus_minus(stand.scores[leader])}"
    opening = (
        f"**{code(leader)} wins on {task}** {where}, with {scored}"
        if won
        else f"**No single winner on {task}** {where}. {code(leader)} is best, with {scored}"
    )
    correction = plural(len(stand.pairs), "pair")
    said = [
        f"{PHRASES[outcome].format(correction)}: {_named(stand, labels)}"
        for outcome, labels in others.items()
        if labels
    ]
    return f"{'. '.join([opening, *said])}.{_left_out(stand)}"


def place(contest: Contest, lengths: Sequence[int]) -> str:
    """`at trained lengths (8, 16)`, or `at length 32, beyond those in training`."""
    named = ", ".join(map(str, lengths))
    if list(lengths) != contest.trained:
        return f"at length {named}, beyond those in training"
    shortest = contest.train_range[0] if contest.train_range else 0
    within = min(lengths, default=shortest) >= shortest
    return f"at {'trained lengths' if within else 'lengths up to those in training'} ({named})"


def solved(contest: Contest) -> str:
    """Which variants solved the task in every seed, in some, in none."""
    if not contest.solvable or contest.refusal:
        return ""
    groups: dict[str, list[str]] = {"in every seed": [], "in some seeds": [], "in no seed": []}
    for label, runs in contest.runs.items():
        steps = [entry.number("quality", "steps_to_solve") for entry in runs]
        known = [step for step in steps if step is not None]
        group = "in every seed" if len(known) == len(steps) else "in some seeds" if known else "in no seed"
        after = f" after {units.count(sum(known) / len(known))} steps" if known else ""
        groups[group].append(f"{code(label)}{after}")
    said = [f"{group} by {listing(labels)}" for group, labels in groups.items() if labels]
    return f"Solved {'; '.join(said)}." if said else ""


def _named(stand: Standing, labels: Iterable[str]) -> str:
    return listing(f"{code(label)}{TIED}{units.plus_minus(stand.scores[label])}" for label in labels)


def _left_out(stand: Standing) -> str:
    if not stand.left_out:
        return ""
    return f" Left out: {listing(f'{code(label)} ({why})' for label, why in stand.left_out.items())}."


def cheapest(contest: Contest) -> str:
    """Which variant costs least, by each measure; those that ran on a slow fallback are left out."""
    costs = {label: entry for label, entry in contest.costs.items() if not entry.fallback}
    if contest.refusal or len(costs) < 2:
        return ""
    said = []
    for names, choose, text in ((RATES, max, _tokens), (SIZES, min, units.size)):
        for name, title in names.items():
            known = {label: cost for label, entry in costs.items() if (cost := expense(entry, name)) is not None}
            if len(known) > 1:
                best = choose(known.values())
                winners = listing(code(label) for label, cost in known.items() if cost == best)
                said.append(f"{title} {winners} ({text(best)})")
    slow = {label: entry.fallback for label, entry in contest.costs.items() if entry.fallback}
    left = listing(f"{code(label)} (slow fallback {code(str(name))})" for label, name in slow.items())
    return f"Cost, measured once each: {', '.join(said)}.{f' Left out: {left}.' if slow else ''}" if said else ""


def _tokens(value: float) -> str:
    return f"{units.short(value)}{TIED}tokens/s"


def terms(study: Study) -> list[str]:
    """On what terms the architectures met: learning rates, budget, training, and what is missing."""
    return [_learning_rates(study), _budget(study), *_training(study), *_notes(study), _cells(study)]


def _learning_rates(study: Study) -> str:
    experiment = study.experiment
    if experiment.lr_grid:
        grid = ", ".join(map(units.rate, experiment.lr_grid))
        return f"**Learning rates were selected** on validation with seed 0, per architecture and task, from {grid}."
    if experiment.lr is not None:
        return f"**One learning rate for all**, {units.rate(experiment.lr)}, not selected."
    found = dict.fromkeys((label, lr) for contest in study.contests for label, lr in contest.rates.items())
    declared = listing(f"{code(label)}{TIED}{units.rate(lr)}" for label, lr in found)
    return f"**One declared learning rate per architecture, not selected**{': ' if found else ''}{declared}."


def _budget(study: Study) -> str:
    budget = study.experiment.budget
    if budget.by == "none":
        return "**No common budget**: sizes are as configured, so quality is not compared at equal size."
    amount = BUDGETS[budget.by].format(units.count(budget.value))
    known = [row.number("matching", "deviation") for row in study.matching.values()]
    deviations = [deviation for deviation in known if deviation is not None]
    if not deviations:
        return f"**Budget**: {amount}."
    least, most = units.percent(min(deviations)), units.percent(max(deviations))
    span = least if least == most else f"{least} to {most}"
    return f"**Budget**: {amount}; the architectures deviate from it by {span}."


def _training(study: Study) -> list[str]:
    said: dict[str, list[str]] = {}
    for contest in study.contests:
        train = next((entry.get("cell", "train") for entry in contest.trains if entry.get("cell", "train")), None)
        if train:
            solved = ", fewer when solved" if train.get("stop_when_solved") and contest.solvable else ""
            sentence = (
                f"{units.count(train.get('steps'))} steps of {train.get('batch_size')} examples{solved}, "
                f"{plural(contest.seeds, 'seed')}"
            )
            said.setdefault(sentence, []).append(code(contest.task))
    lines = [f"{listing(tasks)}: {sentence}" for sentence, tasks in said.items()]
    return [f"**Training**: {'; '.join(lines)}."] if lines else []


def _notes(study: Study) -> list[str]:
    found = dict.fromkeys(
        (contest.task, str(note))
        for contest in study.contests
        for entry in contest.trains
        for note in entry.get("data", "notes") or []
    )
    return [f"**Data** of {code(task)}: {units.text(note)}." for task, note in found]


def _cells(study: Study) -> str:
    if not study.entries:
        return "**No cell has been recorded yet.**"
    ended = Counter(entry.status for entry in study.entries)
    said = listing(f"{number} {status}" for status, number in ended.most_common())
    stale = sum(entry.stale is not None for entry in study.entries)
    shown = f"; {stale} stale, in no verdict" if stale else ""
    missing = f" {plural(len(study.missing), 'training run')} still to come." if study.missing else ""
    return f"**Cells**: {len(study.entries)} recorded, {said}{shown}.{missing}"
