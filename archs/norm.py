"""What architectures without centring share: the norm by root mean square."""

from __future__ import annotations

from torch import Tensor, nn

import kernels


class RMSNorm(nn.RMSNorm):
    """Normalisation by the root of the mean square (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        assert self.eps is not None
        return kernels.rms_norm(x, self.weight, self.eps)
