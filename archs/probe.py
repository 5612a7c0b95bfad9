"""What `archs.verify` puts to a backbone: inputs, ways of running it, and comparisons with their tolerance."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from archs.contract import Backbone, Tokens
from archs.ids import FIRST, PAD

LENGTHS = (9, 5, 1)
"""Real tokens per row of the ragged source: no padding, some, and as much as there can be."""
COLUMNS = 7
"""Target columns; neither the source's nor a part of it, so that no tensor is mistaken for another."""

Complaints = Iterator[str]
Rule = Callable[["Probe"], Complaints]


def register(rules: dict[str, Rule], check: Rule) -> Rule:
    """Add a check to `rules` under its own name."""
    rules[check.__name__] = check
    return check


@dataclass(frozen=True)
class Probe:
    """A backbone in eval mode and what to run it on; results are compared within `allowed`.

    backbone: a private copy in `dtype`. ragged: a left-padded source of LENGTHS. full: the same ids without padding.
    target: (B, T) int64.
    """

    backbone: Backbone
    dtype: torch.dtype
    ragged: Tokens
    full: Tokens
    target: Tensor

    @classmethod
    def of(cls, backbone: Backbone, dtype: torch.dtype) -> Probe:
        """Copy the backbone as it stands and draw the inputs. Raises ValueError for a dtype or vocabulary too small."""
        if dtype not in (torch.float64, torch.float32):
            raise ValueError(f"verify_contract: expected dtype float64 or float32, got {dtype}; others are too coarse")
        if backbone.readout.out_features < FIRST + 2:
            got = backbone.readout.out_features
            raise ValueError(f"verify_contract: expected a vocabulary of at least {FIRST + 2} ids, got {got}")
        copied = copy.deepcopy(backbone).to(dtype).eval().requires_grad_(True)
        return cls(copied, dtype, *_inputs(copied.readout))

    @property
    def sources(self) -> dict[str, Tokens]:
        """Both paths through every architecture: with a mask and without."""
        return {"padded source": self.ragged, "source without mask": self.full}

    @property
    def rows(self) -> int:
        return len(LENGTHS)

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """Logits (B, T, V) of the fused path for each source, without gradient."""
        with torch.no_grad():
            return {name: self.forward(source) for name, source in self.sources.items()}

    @cached_property
    def cotangent(self) -> Tensor:
        """(B, T, V) random weights that turn logits into a loss."""
        shape = (*self.target.shape, self.backbone.readout.out_features)
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=self.dtype)
        return weights.to(self.target.device)

    def other(self, ids: Tensor) -> Tensor:
        """Ids of the same shape, each a different ordinary one."""
        return FIRST + (ids - FIRST + 1) % (self.backbone.readout.out_features - FIRST)

    def garbage(self, shape: tuple[int, ...]) -> Tensor:
        """Any ids at all, the special ones included."""
        ids = torch.randint(0, self.backbone.readout.out_features, shape, generator=torch.Generator().manual_seed(2))
        return ids.to(self.target.device)

    def forward(self, source: Tokens) -> Tensor:
        """Logits (B, T, V) of the fused path."""
        return self.backbone(source, self.target)

    def split(self, source: Tokens, *chunks: int, room: int = 0) -> Tensor:
        """Logits (B, T, V) of encoding, then decoding the target in chunks of these lengths (default: in one)."""
        state, logits = self.backbone.encode(source, room), []
        for chunk in self.target.split(chunks or (COLUMNS,), 1):
            part, state = self.backbone.decode(state, chunk)
            logits.append(part)
        return torch.cat(logits, 1)

    def allowed(self, expected: Tensor) -> float:
        """The difference that rounding may make: 1e-10 in float64, else 1e-4 of the largest expected value."""
        return 1e-10 if self.dtype == torch.float64 else 1e-4 * float(expected.detach().abs().max())

    def noise(self, expected: Tensor) -> float:
        """The difference below which two results show no dependence: a few units in the last place."""
        return 32 * torch.finfo(self.dtype).eps * float(expected.detach().abs().max())

    def differ(self, what: str, got: Tensor, expected: Tensor, scale: Tensor | None = None) -> Complaints:
        """A complaint where `got` is not `expected`; rounding is judged by `scale`, by default by `expected`."""
        if got.shape != expected.shape:
            yield f"{what}: shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
            return
        allowed = self.allowed(expected if scale is None else scale)
        if not (found := difference(got, expected)) <= allowed:
            yield f"{what}: differs by {found:.2e}, allowed {allowed:.1e}"


def difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference; infinite or NaN where either is."""
    return float((one - other).detach().abs().max()) if one.numel() else 0.0


def _inputs(readout: nn.Linear) -> tuple[Tokens, Tokens, Tensor]:
    """The ragged source, the full source and the target, on the device of `readout`."""
    generator, device = torch.Generator().manual_seed(0), readout.weight.device
    shape = (len(LENGTHS), max(LENGTHS) + COLUMNS)
    ids = torch.randint(FIRST, readout.out_features, shape, generator=generator).to(device)
    source, target = ids[:, : max(LENGTHS)], ids[:, max(LENGTHS) :].clone()
    mask = torch.arange(max(LENGTHS)) >= max(LENGTHS) - torch.tensor(LENGTHS)[:, None]
    mask = mask.to(device)
    return Tokens(source.masked_fill(~mask, PAD), mask), Tokens(source.clone()), target


def gradients(probe: Probe, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of every parameter under the probe's loss; zeros for one that plays no part."""
    named = dict(probe.backbone.named_parameters())
    with torch.enable_grad():
        found = torch.autograd.grad((run() * probe.cotangent).sum(), list(named.values()), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)]
    return dict(zip(named, filled, strict=True))


def source_gradients(probe: Probe, source: Tokens, run: Callable[[], Tensor]) -> list[Tensor]:
    """The largest gradient at each source token, (B, S), one for each embedding that read the source."""
    rows, columns = source.ids.shape
    with torch.enable_grad(), _embedded(probe.backbone, rows, (columns, columns + COLUMNS)) as outputs:
        found = torch.autograd.grad((run() * probe.cotangent).sum(), outputs, allow_unused=True)
    filled = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, found, strict=True)]
    return [gradient.abs().amax(-1)[:, :columns] for gradient in filled]


@contextlib.contextmanager
def _embedded(backbone: Backbone, rows: int, columns: tuple[int, ...]) -> Iterator[list[Tensor]]:
    """Collects what the nn.Embedding modules return for ids of (rows, one of columns)."""
    outputs: list[Tensor] = []

    def collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[0] == rows and output.shape[1] in columns:
            outputs.append(output)

    hooks = [m.register_forward_hook(collect) for m in backbone.modules() if isinstance(m, nn.Embedding)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
