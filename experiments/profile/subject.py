"""What is profiled, and what each mode does with it: the same calls, whether the tensors are real or fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import archs
from archs.contract import Backbone, Tokens
from experiments import loss
from experiments.module import BETAS, parameter_groups
from experiments.profile.config import DECODED
from experiments.profile.point import Point

STEPS = 2
"""Tokens generated where one alone would do: each needs what the first needed, the room for all is there before."""
WARM = 16
"""Tokens of the short pass that comes first: it makes the optimiser's state, and what libraries load at first use."""
CLIP = 1.0
WEIGHT_DECAY = 0.1
LEARNING_RATE = 1e-4


@dataclass
class Subject:
    """A model and, in training, its optimiser."""

    point: Point
    backbone: Backbone
    optimizer: torch.optim.Optimizer | None

    @property
    def device(self) -> torch.device:
        return self.backbone.readout.weight.device

    def batch(self, context: int) -> tuple[Tokens, Tensor]:
        """Random ids: half source and half target in training, else all source and one target token."""
        rows = self.point.rows
        source = context // 2 if self.point.mode == "train" else context
        ids = torch.randint(3, self.point.vocab_size, (rows, context + 1), device=self.device)
        last = context if self.point.mode == "train" else context + 1
        return Tokens(ids[:, :source].clone()), ids[:, source:last].clone()

    def train_step(self, source: Tokens, target: Tensor) -> None:
        """One optimiser step; every target position is scored."""
        assert self.optimizer is not None
        features = self.backbone.features(source, target)
        value = loss.cross_entropy(features.flatten(0, 1), self.backbone.readout, target.flatten())
        del features
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def once(self, context: int, between: Callable[[], None] = lambda: None) -> tuple[Tensor, Any] | None:
        """What a point measures; where it decodes, the next token and the state after a few.

        between: called after reading, where decoding follows.
        """
        source, target = self.batch(context)
        if self.point.mode == "train":
            self.train_step(source, target)
            return None
        with self.inference():
            if self.point.mode == "prefill":
                self.read(source)
                return None
            state = self.read(source, room=DECODED)
            del source
            between()
            for _ in range(STEPS):
                target, state = self.generate(state, target)
        return target, state

    def read(self, source: Tokens, room: int = 0) -> Any:
        """The state after the source; in chunks where asked for and possible."""
        chunk, ids = self.point.chunk, source.ids
        if not 0 < chunk < ids.shape[1] or not reads_in_pieces(self.backbone):
            return self.backbone.encode(source, room=room)
        rest = ids[:, chunk:].split(chunk, 1)
        state = self.backbone.encode(Tokens(ids[:, :chunk]), room=ids.shape[1] - chunk + room)
        for piece in rest:
            state = self.backbone.advance(state, piece)[1]
        return state

    def generate(self, state: Any, token: Tensor) -> tuple[Tensor, Any]:
        """The likeliest next token (B, 1) and the state after it."""
        logits, state = self.backbone.decode(state, token)
        return logits[:, -1:].argmax(-1), state

    @contextmanager
    def inference(self) -> Iterator[None]:
        """As a model is used."""
        self.backbone.eval()
        with torch.inference_mode():
            yield


def reads_in_pieces(backbone: Backbone) -> bool:
    """Whether `advance` continues what `encode` began: a decoder-only family, which alone overrides `features`."""
    return type(backbone).features is not Backbone.features


def build(point: Point) -> Subject:
    """The model in its dtype, on the device that is the default now. The optimiser's state comes with a first step."""
    torch.manual_seed(0)
    made = archs.build(point.arch, point.vocab_size, **point.arch_config)
    backbone = cast(made, getattr(torch, point.dtype))
    if point.mode != "train":
        backbone.requires_grad_(False)
        return Subject(point, backbone, None)
    groups = parameter_groups(backbone, WEIGHT_DECAY)
    return Subject(point, backbone, torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True))


def cast(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """The backbone with all parameters in a dtype. `Module.to` cannot do it to fake tensors."""
    changed: dict[int, nn.Parameter] = {}
    for module in backbone.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != dtype:
                new = changed.setdefault(id(parameter), nn.Parameter(parameter.detach().to(dtype)))
                vars(new).update(vars(parameter))
                setattr(module, name, new)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
    return backbone


def warm_up(subject: Subject) -> None:
    """The same as will be measured, on a few tokens."""
    source, target = subject.batch(WARM)
    if subject.point.mode == "train":
        subject.train_step(source, target)
        return
    with subject.inference():
        state = subject.read(source, room=1)
        if subject.point.mode == "decode":
            subject.generate(state, target)
