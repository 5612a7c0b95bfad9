"""The memory of one point: a tracked pass, real or fake, and what its peak is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from experiments.profile.cards import Card
from experiments.profile.config import DECODED
from experiments.profile.subject import STEPS, Subject
from experiments.profile.tracker import Tracker


def account(subject: Subject, context: int, card: Card | None = None) -> dict[str, Any]:
    """What a pass at a context takes.

    peak_bytes and split: at the peak, in total and by category. before_bytes: at the peak of the reading that goes
    before decoding; needed_bytes: the larger of the two. state_bytes: of the state after the context. flops,
    moved_bytes, roofline_seconds (on the card, if any): of as many `tokens`. operations: how many, all phases.
    """
    return followed(subject, context, card)[0]


def followed(
    subject: Subject, context: int, card: Card | None = None, between: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], tuple[Tensor, Any] | None]:
    """The account of a pass; and, where it decoded, the next token and the state, from which it may go on untracked.

    between: called after reading, where decoding follows.
    """
    tracker = Tracker(subject.point.threads)
    tracker.hold_all(subject.backbone.parameters(), "parameters")
    tracker.hold_all(subject.backbone.buffers(), "parameters")
    if subject.optimizer is not None:
        tracker.hold_all(tree_leaves([list(state.values()) for state in subject.optimizer.state.values()]), "optimizer")
    reached = None
    with tracker:
        if subject.point.mode == "train":
            phase = _train(subject, tracker, context)
        elif subject.point.mode == "prefill":
            phase = _prefill(subject, tracker, context)
        else:
            phase, reached = _decode(subject, tracker, context, between)
    work, dtype = tracker.work, subject.point.dtype
    facts = {
        "peak_bytes": tracker.peak,
        "needed_bytes": max(tracker.peak, phase["before_bytes"]),
        "split": tracker.split(),
        "flops": work.flops,
        "moved_bytes": work.bytes,
        "roofline_seconds": None if card is None else work.seconds(card.peak(dtype), card.bandwidth),
        "operations": tracker.operations,
    }
    return phase | facts, reached


def _train(subject: Subject, tracker: Tracker, context: int) -> dict[str, Any]:
    source, target = subject.batch(context)
    tracker.reset()
    unwatch = tracker.watch_gradients(subject.backbone)
    with tracker.saved():
        subject.train_step(source, target)
    unwatch()
    return {"before_bytes": 0, "state_bytes": None, "tokens": context * subject.point.rows}


def _prefill(subject: Subject, tracker: Tracker, context: int) -> dict[str, Any]:
    source, _ = subject.batch(context)
    tracker.reset()
    with subject.inference():
        state = subject.read(source)
    tracker.hold_all(state.leaves(), "state")
    return {"before_bytes": 0, "state_bytes": state.nbytes, "tokens": context * subject.point.rows}


def _decode(
    subject: Subject, tracker: Tracker, context: int, between: Callable[[], None]
) -> tuple[dict[str, Any], tuple[Tensor, Any]]:
    source, token = subject.batch(context)
    with subject.inference():
        state = subject.read(source, room=DECODED)
        before, size = tracker.peak, state.nbytes
        tracker.hold_all(state.leaves(), "state")
        del source
        between()
        tracker.reset()
        for _ in range(STEPS):
            token, state = subject.generate(state, token)
            tracker.hold_all(state.leaves(), "state")
    phase = {"before_bytes": before, "state_bytes": size, "tokens": STEPS * subject.point.rows}
    return phase, (token, state)
