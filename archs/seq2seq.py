"""Recurrent encoder-decoder, with the attention that made it work on long sequences, and without.

`none`: Cho et al. 2014 and Sutskever et al. 2014, the decoder sees nothing but the encoder's final state: one vector
for a source of any length. `bahdanau`: Bahdanau et al. 2015 (section 3.1, appendix A), additive attention queried by
the previous decoder state and fed into the next one. `luong`: Luong et al. 2015 (section 3.1), dot or general
attention queried by the current decoder state, global, without input feeding.

What surrounds the attention is the same for all three, so that they compare: the decoder starts from tanh(W [ahead;
back]) of the encoder's final states, and features are tanh(W [state; context; input]), where Bahdanau et al. have a
maxout layer and Luong et al. leave the input out.

State: the decoder's recurrent state, and with attention the encoded source and its projected keys.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from archs.attention import source_mask
from archs.contract import Backbone, State, Tokens, check_config
from archs.linear import Linear


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and options."""

    width: ClassVar[tuple[str, int]] = ("d_model", 8)
    inner: ClassVar[tuple[str, int]] = ("d_hidden", 1)

    attention: Literal["none", "bahdanau", "luong"] = "bahdanau"
    score: Literal["dot", "general"] = "general"
    """Luong's score; dot compares with the sum of both directions of the encoder."""
    query_sees_input: bool = True
    """Bahdanau's query also reads the step's input token, as in the conditional GRU of Nematus (Sennrich et al. 2017).
    False = the paper's equation 6: what a step attends to cannot depend on that step's input, so that a decoder cannot
    answer a recall query where it stands."""
    cell: Literal["gru", "lstm"] = "gru"
    d_model: int = 128
    """Width of embeddings and of the features that are read out."""
    d_hidden: int | None = None
    """Width of the recurrent state, of each direction of the encoder, and of the additive score; d_model by default."""
    n_layers: int = 1
    dropout: float = 0.0
    learning_rate: float = 3e-3
    state_dtype: Literal["float32", "model"] = "float32"
    """The recurrent state has the dtype of the module: torch's GRU and LSTM keep no other."""

    def __post_init__(self) -> None:
        check_config(self, "d_hidden")
        choices = {"attention": ("none", "bahdanau", "luong"), "score": ("dot", "general"), "cell": ("gru", "lstm")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"seq2seq: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def hidden(self) -> int:
        """Width of the recurrent state."""
        return self.d_hidden or self.d_model


Hidden = tuple[Tensor, ...]
"""The recurrent state, (B, n_layers, H) each: (h,) of a GRU, (h, c) of an LSTM."""


@dataclass(frozen=True)
class Seq2SeqState(State):
    """The decoder's hidden; with attention keys (B, S, H) and memory (B, S, 2H) of the source, and its start (B,)."""

    hidden: Hidden
    keys: Tensor | None = None
    memory: Tensor | None = None
    start: Tensor | None = None


def recurrent(config: Config, inputs: int, layers: int) -> nn.GRU | nn.LSTM:
    """A one-directional stack; orthogonal recurrent matrices, zero biases but for the LSTM's forget gate (1)."""
    kind = nn.GRU if config.cell == "gru" else nn.LSTM
    dropout = config.dropout if layers > 1 else 0.0
    rnn = kind(inputs, config.hidden, layers, batch_first=True, dropout=dropout)
    for name, parameter in rnn.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
            if config.cell == "lstm" and "bias_ih" in name:
                nn.init.ones_(parameter[config.hidden : 2 * config.hidden])
        else:
            initialise = nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_
            for gate in parameter.chunk(3 if config.cell == "gru" else 4):
                initialise(gate)
    return rnn


def recur(rnn: nn.GRU | nn.LSTM, inputs: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
    """The stack in its weights' own dtype: under CUDA autocast cuDNN's would be float16, whatever was asked for."""
    device = inputs.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        inputs = inputs.to(next(rnn.parameters()).dtype)
        return _recur_gru(rnn, inputs, hidden) if isinstance(rnn, nn.GRU) else rnn(inputs, hidden)


def _recur_gru(rnn: nn.GRU, x: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the module computes, by our operation."""
    lasts = []
    for layer, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(rnn.all_weights):
        if layer:
            x = F.dropout(x, rnn.dropout, rnn.training)
        start = None if hidden is None else hidden[layer]
        x, last = kernels.gru(x, weight_ih, weight_hh, bias_ih, bias_hh, start)
        lasts.append(last)
    return x, torch.stack(lasts)


def run(rnn: nn.GRU | nn.LSTM, inputs: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
    """Top outputs (B, T, H) and the state after inputs (B, T, I)."""
    stacked = tuple(part.transpose(0, 1).to(next(rnn.parameters()).dtype).contiguous() for part in hidden)
    outputs, after = recur(rnn, inputs, stacked[0] if len(stacked) == 1 else stacked)
    after = (after,) if isinstance(after, Tensor) else after
    return outputs, tuple(part.transpose(0, 1) for part in after)


def turn(rows: Tensor, shift: Tensor | None) -> Tensor:
    """Rotate the columns of each row (B, S, D) to the left by `shift` (B,): packing without looking at values."""
    if shift is None:
        return rows
    columns = (torch.arange(rows.shape[1], device=rows.device) + shift[:, None]) % rows.shape[1]
    return rows.gather(1, columns[..., None].expand_as(rows))


class BidirectionalLayer(nn.Module):
    """One layer of the encoder; pads never come before a row's real tokens in either direction."""

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        self.forwards = recurrent(config, inputs, 1)
        self.backwards = recurrent(config, inputs, 1)

    def forward(self, x: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S, I) -> outputs (B, S, 2H), and the final states of both directions (B, 2H)."""
        ahead = turn(recur(self.forwards, turn(x, start))[0], None if start is None else -start)
        back = recur(self.backwards, x.flip(1))[0].flip(1)
        first = back[:, 0] if start is None else back[torch.arange(len(back), device=back.device), start]
        return torch.cat([ahead, back], -1), torch.cat([ahead[:, -1], first], -1)


class Bridge(nn.Module):
    """The decoder's initial state from the encoder's final ones: tanh(W [ahead; back]) per layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.parts = 1 if config.cell == "gru" else 2
        self.layers = nn.ModuleList(
            [Linear(2 * config.hidden, self.parts * config.hidden) for _ in range(config.n_layers)]
        )

    def forward(self, finals: list[Tensor]) -> Hidden:
        """One (B, 2H) per layer -> (B, n_layers, H) per part of the state."""
        layers = [layer(final).tanh() for layer, final in zip(self.layers, finals, strict=True)]
        return torch.stack(layers, 1).chunk(self.parts, -1)


class Seq2Seq(Backbone[Seq2SeqState]):
    """Bidirectional recurrent encoder, recurrent decoder, and one of three attentions between them."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        hidden, context = config.hidden, 0 if config.attention == "none" else 2 * config.hidden
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        widths = [config.d_model] + [2 * hidden] * (config.n_layers - 1)
        self.encoder = nn.ModuleList([BidirectionalLayer(config, width) for width in widths])
        self.bridge = Bridge(config)
        fed_back = context if config.attention == "bahdanau" else 0
        self.decoder = recurrent(config, config.d_model + fed_back, config.n_layers)
        self.output = Linear(hidden + context + config.d_model, config.d_model)
        self._build_attention()
        self.readout = Linear(config.d_model, vocab_size)

    def _build_attention(self) -> None:
        hidden = self.config.hidden
        if self.config.attention == "bahdanau":
            self.query = Linear(hidden, hidden)
            self.v = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
            if self.config.query_sees_input:
                self.query_input = Linear(self.config.d_model, hidden, bias=False)
        if self.config.attention == "bahdanau" or (self.config.attention, self.config.score) == ("luong", "general"):
            self.key = Linear(2 * hidden, hidden, bias=False)

    def encode(self, source: Tokens, room: int = 0) -> Seq2SeqState:
        """Read the source in both directions. The state has a fixed size after it: `room` needs nothing."""
        x, finals = self.dropout(self.embedding(source.ids)), []
        for index, layer in enumerate(self.encoder):
            x, final = layer(x if index == 0 else self.dropout(x), source.start)
            finals.append(final)
        hidden = self.bridge(finals)
        if self.config.attention == "none":
            return Seq2SeqState(hidden)
        return Seq2SeqState(hidden, self._keys(x), x, source.start)

    def _keys(self, memory: Tensor) -> Tensor:
        if self.config.attention == "luong" and self.config.score == "dot":
            ahead, back = memory.chunk(2, -1)
            return ahead + back
        return self.key(memory)

    def advance(self, state: Seq2SeqState, target: Tensor) -> tuple[Tensor, Seq2SeqState]:
        """Teacher-forced decoding of T inputs: one fused call, but for Bahdanau's, whose context is fed back."""
        x = self.dropout(self.embedding(target))
        if self.config.attention == "bahdanau":
            seen, hidden = self._decode_bahdanau(x, state)
        else:
            seen, hidden = run(self.decoder, x, state.hidden)
        if self.config.attention == "luong":
            seen = torch.cat([seen, self._luong(seen, state, state.memory)], -1)
        state = dataclasses.replace(state, hidden=hidden)
        return torch.tanh(self.output(torch.cat([self.dropout(seen), x], -1))), state

    def _decode_bahdanau(self, x: Tensor, state: Seq2SeqState) -> tuple[Tensor, Hidden]:
        """Outputs and contexts (B, T, H + 2H): each context is queried by the previous state and fed to the next."""
        if isinstance(self.decoder, nn.GRU) and self.config.n_layers == 1:
            return self._decode_fused(self.decoder, x, state)
        hidden, seen = state.hidden, []
        for step, from_input in zip(x.split(1, 1), self._query_of_inputs(x).split(1, 1), strict=True):
            query = self.query(hidden[0][:, -1:]) + from_input
            context = self._bahdanau(query, state, state.memory)
            output, hidden = run(self.decoder, torch.cat([step, context], -1), hidden)
            seen.append(torch.cat([output, context], -1))
        return torch.cat(seen, 1), hidden

    def _decode_fused(self, rnn: nn.GRU, x: Tensor, state: Seq2SeqState) -> tuple[Tensor, Hidden]:
        """The same in one call; what the inputs add to gates and queries is computed for all steps at once."""
        assert state.keys is not None
        assert state.memory is not None
        weight, recurrent_weight, bias, recurrent_bias = rnn.parameters()  # in torch's order, of the one layer
        from_input, from_context = weight.split([x.shape[-1], state.memory.shape[-1]], 1)
        mask = source_mask(state.start, state.keys.shape[1])
        outputs, contexts, last = kernels.attentive_gru(
            kernels.linear(x, from_input, bias),
            self._query_of_inputs(x) + self.query.bias,
            state.hidden[0][:, 0].to(weight.dtype),
            from_context,
            recurrent_weight,
            recurrent_bias,
            self.query.weight,
            state.keys,
            state.memory,
            self.v,
            None if mask is None else mask[:, 0, 0],
        )
        return torch.cat([outputs, contexts], -1), (last[:, None],)

    def _query_of_inputs(self, x: Tensor) -> Tensor:
        """What embedded inputs (B, T, D) add to the queries: (B, T, H), or zeros (B, T, 1)."""
        return self.query_input(x) if self.config.query_sees_input else torch.zeros_like(x[..., :1])

    def _luong(self, query: Tensor, state: Seq2SeqState, values: Tensor | None) -> Tensor:
        """Context (B, T, E) of current decoder states (B, T, H) over values (B, S, E); the score is not scaled."""
        assert state.keys is not None
        assert values is not None
        mask = source_mask(state.start, state.keys.shape[1])
        heads = (query[:, None], state.keys[:, None], values[:, None])
        return F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=1.0)[:, 0]

    def _bahdanau(self, query: Tensor, state: Seq2SeqState, values: Tensor | None) -> Tensor:
        """Context (B, T, E) of queries (B, T, H) over values (B, S, E)."""
        assert state.keys is not None
        assert values is not None
        mask = source_mask(state.start, state.keys.shape[1])
        mask = None if mask is None else mask[:, 0, 0]
        return kernels.additive_attention(query, state.keys, values, self.v, mask)

    def alignments(self, source: Tokens, target: Tensor) -> Tensor | None:
        """Attention weights over the source: the context of one-hot values."""
        if self.config.attention == "none":
            return None
        state = self.encode(source)
        rows, columns = source.ids.shape
        one_hot = torch.eye(columns, dtype=state.hidden[0].dtype, device=target.device).expand(rows, -1, -1)
        x = self.dropout(self.embedding(target))
        if self.config.attention == "luong":
            return self._luong(run(self.decoder, x, state.hidden)[0], state, one_hot)
        outputs = self._decode_bahdanau(x, state)[0][..., : self.config.hidden]
        previous = torch.cat([state.hidden[0][:, -1:], outputs[:, :-1]], 1)
        return self._bahdanau(self.query(previous) + self._query_of_inputs(x), state, one_hot)
