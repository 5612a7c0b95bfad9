"""What all architectures share: the product with a matrix of weights."""

from __future__ import annotations

from torch import Tensor, nn

import kernels


class Linear(nn.Linear):
    """x weight^T + bias, on the backends of `kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return kernels.linear(x, self.weight, self.bias)

    def rectified(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), negative numbers becoming 0."""
        return kernels.linear(x, self.weight, self.bias, activation="relu")

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K) -> the first and the last half of the N features, each a tensor of its own.

        Cut from one tensor, they would be put together again by the backward pass, which takes longer than reading x
        twice.
        """
        weights, biases = self.weight.chunk(2), (None, None) if self.bias is None else self.bias.chunk(2)
        first, last = (kernels.linear(x, *half) for half in zip(weights, biases, strict=True))
        return first, last
