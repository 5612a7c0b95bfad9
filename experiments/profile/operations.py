"""What operations cost beside the tensors that they return: FLOPs, and bytes moved.

FLOPs of matrix products, convolutions and attention are torch's own formulas; added are those of the CPU's attention
and of our kernels. Elementwise work counts as bytes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]


class Work:
    """FLOPs, and bytes that operations read and wrote, each by itself: what eager execution moves without fusion."""

    def __init__(self) -> None:
        self.flops = 0
        self.bytes = 0
        self.parts: dict[tuple[int, int], int] = {}
        """(FLOPs, bytes) of one operation -> how many there were."""

    def add(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        """Count one operation; views move nothing."""
        if func.is_view:
            return
        flops = _flops(func, args, kwargs, results)
        moved = sum(map(_bytes, args)) + sum(map(_bytes, kwargs.values())) + _bytes(results)
        self.flops += flops
        self.bytes += moved
        self.parts[flops, moved] = self.parts.get((flops, moved), 0) + 1

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least time in which a card does it: each operation bound by its FLOPs or by its bytes (roofline)."""
        return sum(count * max(flops / peak, moved / bandwidth) for (flops, moved), count in self.parts.items())


def _bytes(value: Any) -> int:
    """Of a tensor, or of all in a list."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _flops(func: Any, args: Any, kwargs: Any, results: Any) -> int:
    name = func._schema.name
    if name in OWN:
        return OWN[name](args)
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=results))
    return 0


def _attention(args: Any) -> int:
    return sdpa_flop_count(*(_heads(tensor, args[0]) for tensor in args[:3]))


def _attention_backward(args: Any) -> int:
    gradient, query, key, value = args[:4]
    return sdpa_backward_flop_count(gradient.shape, query.shape, _heads(key, query), _heads(value, query))


def _heads(tensor: Tensor, query: Tensor) -> Shape:
    """(B, H, L, E) with as many heads as there are queries: groups share memory, not work."""
    return tensor.shape[0], query.shape[1], *tensor.shape[2:]


def _scan(args: Any, factor: int) -> int:
    """9 per step, channel and state forwards: decay, input and output, each a multiplication and an addition or exp."""
    u, A = args[0], args[2]
    return 9 * factor * u.numel() * A.shape[1]


def _scan_backward(args: Any) -> int:
    return _scan(args[3:], 3)


def _convolution(args: Any, factor: int) -> int:
    x, weight = args[:2]
    return 2 * factor * x.numel() * weight.shape[1]


def _additive(args: Any, factor: int) -> int:
    """Per query and key: an addition, tanh and a multiply-add per hidden feature, a multiply-add per value."""
    query, keys, values = args[:3]
    rows, queries, hidden = query.shape
    return factor * rows * queries * keys.shape[1] * (4 * hidden + 2 * values.shape[2])


def _attentive_gru(args: Any) -> int:
    """Per step the products with three matrices, and the attention."""
    gates, queries, keys, values = args[0], args[1], args[7], args[8]
    return 2 * gates.shape[0] * gates.shape[1] * _numbers(args[3], args[4], args[6]) + _additive(
        (queries, keys, values), 1
    )


def _attentive_gru_backward(args: Any) -> int:
    """The same products with their transposes, and the queries' once more."""
    outputs, queries, keys, values = args[2], args[6], args[11], args[12]
    products = _numbers(args[8], args[9], args[10], args[10])
    return 2 * outputs.shape[0] * outputs.shape[1] * products + _additive((queries, keys, values), 2)


def _gru(states: Tensor, weight: Tensor) -> int:
    """A product per step; those of the inputs, and of the weights' gradients, are torch's."""
    return 2 * states.shape[0] * states.shape[1] * weight.numel()


def _numbers(*tensors: Tensor) -> int:
    return sum(tensor.numel() for tensor in tensors)


OWN: dict[str, Callable[[Any], int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    **{f"archlab::selective_scan_{backend}": lambda args: _scan(args, 1) for backend in ("cpu", "cuda", "triton")},
    **{f"archlab::selective_scan_{backend}_backward": _scan_backward for backend in ("cpu", "cuda", "triton")},
    **{
        f"archlab::selective_state_update_{backend}": lambda args: 9 * args[0].numel()
        for backend in ("cpu", "cpu_", "triton", "triton_")
    },
    "archlab::selective_state_update_cpu_backward": lambda args: 27 * args[2].numel(),
    "archlab::attention_cpu": _attention,
    "archlab::attention_cpu_backward": _attention_backward,
    **{f"archlab::causal_conv1d_{backend}": lambda args: _convolution(args, 1) for backend in ("cpu", "triton")},
    **{
        f"archlab::causal_conv1d_{backend}_backward": lambda args: _convolution(args[1:], 2)
        for backend in ("cpu", "triton")
    },
    **{
        f"archlab::causal_conv1d_update_{backend}_": lambda args: _convolution((args[0], args[2]), 1)
        for backend in ("cpu", "triton")
    },
    **{f"archlab::additive_attention_{backend}": lambda args: _additive(args, 1) for backend in ("cpu", "triton")},
    "archlab::additive_attention_cpu_backward": lambda args: _additive(args[2:], 2),
    "archlab::additive_attention_triton_backward": lambda args: _additive(args[3:], 4),
    "archlab::attentive_gru_cpu": _attentive_gru,
    "archlab::attentive_gru_cpu_backward": _attentive_gru_backward,
    "archlab::linear_cpu": lambda args: 2 * args[0].numel() * len(args[2]),
    "archlab::linear_cpu_weight": lambda args: 2 * args[0].numel() * args[2].shape[1],
    "archlab::gru_cpu": lambda args: _gru(args[0], args[2]),
    "archlab::gru_cpu_backward": lambda args: _gru(args[0], args[4]),
}
"""Operator -> FLOPs from its arguments, where torch has no formula."""
