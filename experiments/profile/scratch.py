"""What our kernels on the CPU hold within, beside arguments and results, from the shapes of their arguments.

Of each, the arrays that grow with its arguments; what does not is a few hundred KiB a thread. A thread has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lcm
from typing import Any

from torch import Tensor

FLOAT, LANES = 4, 16
"""Bytes of a number, and numbers side by side at most."""


def scratch(func: Any, args: Any, threads: int) -> int:
    """Bytes that an operation of ours holds for itself; 0 where no threads of a processor do it."""
    declared = SCRATCH.get(func._schema.name)
    return declared(args, threads) if declared and threads else 0


def _padded(count: int, to: int = LANES) -> int:
    return -(-count // to) * to


def _copies(*tensors: Tensor | None) -> int:
    """Bytes of what is laid out anew where it is not contiguous."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None and not tensor.is_contiguous())


def _attention(args: Any, threads: int) -> int:
    """A head's keys and values."""
    query, keys = args[:2]
    rows, _, length, features = keys.shape
    return FLOAT * min(threads, rows * query.shape[1]) * 2 * _padded(length, 32) * _padded(features)


def _attention_backward(args: Any, threads: int) -> int:
    """A head's keys, as rows and as panels, its values, and both gradients; a query's head, its two and its sums."""
    query, keys = args[1:3]
    rows, heads, length, features = keys.shape
    queries, width = _padded(query.shape[2], 64), _padded(features)
    each = 5 * _padded(length, 32) * width + queries * (3 * width + 1)
    return FLOAT * min(threads, rows * heads) * each


class _Cut:
    """How a scan is cut: tasks, each of some blocks of lanes, and segments of time where there are few tasks."""

    def __init__(self, u: Tensor, B: Tensor, C: Tensor, threads: int) -> None:
        (rows, channels, length), window = u.shape, 64
        groups = lcm(*(max(1, _groups(matrix)) for matrix in (B, C)))
        most, per_group = 128, channels // groups
        while most > LANES and rows * groups * -(-per_group // most) < 8:
            most //= 2
        most = min(most, per_group)
        self.blocks, self.tasks = -(-most // LANES), rows * groups * -(-per_group // most)
        wished = threads // self.tasks if threads >= 3 * self.tasks else 1
        self.segments = max(1, min(wished, -(-length // window) // 4))

    def boundaries(self, states: int) -> int:
        """Of each segment its first state and how far it reaches."""
        numbers = self.segments * self.tasks * self.blocks * LANES * (states + 1)
        return FLOAT * numbers if self.segments > 1 else 0


def _groups(matrix: Tensor) -> int:
    """Of B or C: 0 where it is constant in time."""
    return matrix.shape[1] if matrix.dim() == 4 else matrix.dim() - 2


def _scan(args: Any, threads: int) -> int:
    return _Cut(args[0], args[3], args[4], threads).boundaries(args[2].shape[1])


def _scan_backward(args: Any, threads: int) -> int:
    """The gradients of B and C that vary, of each task; of each segment those that are sums over time."""
    u, _, A, B, C = args[3:8]
    cut, states = _Cut(u, B, C, threads), A.shape[1]
    varying = sum(_groups(matrix) > 0 for matrix in (B, C))
    sums = cut.segments * cut.tasks * cut.blocks * LANES * (states * (3 - varying) + 2)
    steps = _padded(u.shape[2], 64) if u.shape[2] > 64 else _padded(u.shape[2])
    return FLOAT * (varying * cut.tasks * steps * states + sums) + cut.boundaries(states)


def _convolution_backward(args: Any, threads: int) -> int:
    """The gradients of weight and bias of each piece of time."""
    x, weight = args[1:3]
    pieces = max(1, min(64 // len(x), x.shape[2] // 256))
    return FLOAT * len(x) * pieces * (weight.numel() + len(weight))


def _attended(keys: int, units: int) -> int:
    """Numbers that a row of additive attention holds: of each key its exponentials and a score; a query."""
    return keys * (units + 1) + LANES + units


def _attended_backward(keys: int, units: int) -> int:
    """The same; and what 64 queries wait to add to the keys."""
    stride = (-(-keys // LANES) | 1) * LANES
    return keys * (units + 1) + LANES + 64 * (units + stride)


def _table(tensor: Tensor, features: int) -> int:
    """Numbers of a row's vectors that are copied, where they do not fill lanes as they lie."""
    in_place = tensor.stride(-1) == 1 and features % LANES == 0
    return 0 if in_place else tensor.shape[-2] * _padded(features)


def _additive(args: Any, threads: int) -> int:
    query, keys, values = args[:3]
    hidden, width = keys.shape[2], values.shape[2]
    tables = _table(query, hidden) + _table(keys, hidden) + _table(values, width)
    context = query.shape[1] * _padded(width) if width % LANES else 0
    return FLOAT * min(threads, len(query)) * (tables + context + _attended(keys.shape[1], _padded(hidden)))


def _additive_backward(args: Any, threads: int) -> int:
    dcontext, weights, query, keys, values = args[:5]
    hidden, width = keys.shape[2], values.shape[2]
    tables = 2 * (_table(query, hidden) + _table(keys, hidden)) + _table(values, width) + _table(dcontext, width)
    each = tables + _attended_backward(keys.shape[1], _padded(hidden))
    freed_before = values.nbytes  # what the gradient of the values, made last, takes
    return max(0, FLOAT * min(threads, len(query)) * each - freed_before) + _copies(weights)


def _linear(args: Any, threads: int) -> int:
    """The weights, as columns of lanes."""
    outputs, inputs = args[2].shape
    return FLOAT * _padded(outputs) * inputs


def _linear_weight(args: Any, threads: int) -> int:
    """The gradient of the weights of each segment of the rows, where there are several."""
    (rows, outputs), inputs = args[0].shape, args[2].shape[1]
    pieces = max(1, -(-outputs // 448)) * max(1, -(-inputs // 256))
    segments = max(1, min(-(-16 // pieces), rows // 1024))
    return FLOAT * segments * outputs * inputs if segments > 1 else 0


def _rows_at_once(rows: int, threads: int) -> int:
    """Of a recurrence: up to four of a task, times the threads at work."""
    together = min(4, -(-rows // threads))
    return min(threads * together, _padded(rows, together))


def _gru(args: Any, threads: int) -> int:
    gates, hidden, weight, _ = args
    return _copies(gates, hidden, weight.mT)


def _gru_backward(args: Any, threads: int) -> int:
    return _copies(*args)


def _attentive_gru(args: Any, threads: int) -> int:
    gates, queries, hidden, by_context, by_hidden, bias, by_query, keys, values, v, _ = args
    each = _attended(*keys.shape[1:]) + keys.shape[2] + 3 * hidden.shape[1]
    copies = _copies(gates, queries, hidden, by_context.mT, by_hidden.mT, bias, by_query.mT, keys, values, v)
    return FLOAT * _rows_at_once(len(keys), threads) * each + copies


def _attentive_gru_backward(args: Any, threads: int) -> int:
    """First the states before each step, and the queries made from them; then these and what the rows hold."""
    *others, keys, values, v, _ = args
    outputs, queries, hidden = args[2], args[6], args[7]
    each = _attended_backward(*keys.shape[1:]) + hidden.shape[1]
    within = FLOAT * _rows_at_once(len(keys), threads) * each + _copies(*others[:6], *others[7:], keys, values, v)
    return queries.nbytes + max(outputs.nbytes, within)


SCRATCH: dict[str, Callable[[Any, int], int]] = {
    "archlab::attention_cpu": _attention,
    "archlab::attention_cpu_backward": _attention_backward,
    "archlab::selective_scan_cpu": _scan,
    "archlab::selective_scan_cpu_backward": _scan_backward,
    "archlab::causal_conv1d_cpu_backward": _convolution_backward,
    "archlab::additive_attention_cpu": _additive,
    "archlab::additive_attention_cpu_backward": _additive_backward,
    "archlab::attentive_gru_cpu": _attentive_gru,
    "archlab::attentive_gru_cpu_backward": _attentive_gru_backward,
    "archlab::linear_cpu": _linear,
    "archlab::linear_cpu_weight": _linear_weight,
    "archlab::gru_cpu": _gru,
    "archlab::gru_cpu_backward": _gru_backward,
}
"""Operator -> bytes from its arguments and the threads at work."""
