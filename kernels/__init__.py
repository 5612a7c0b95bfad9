"""Operations with several backends. One operation is one folder; one file in it is one backend, with no list to edit.

    kernels.selective_scan(u, delta, A, B, C)     the operation, on the best backend that can run these arguments
    kernels.backends("selective_scan")            each backend, and why it cannot run (None = it can)
    kernels.ran()                                 which backends have run in this process

Importing this package compiles nothing and needs no compiler; what must be compiled is compiled at its first use.

Legend of shapes, used in all of kernels/:
    B  rows of a batch     D  channels     L  time steps       N  states per channel    G  groups of channels
    W  width of a filter   T  queries      S  keys             H  hidden units          E  width of values
"""

from kernels.additive_attention import additive_attention
from kernels.attention import attention
from kernels.attentive_gru import attentive_gru
from kernels.causal_conv1d import causal_conv1d
from kernels.causal_conv1d_update import causal_conv1d_update_
from kernels.dispatch import backends, fallbacks, forget, operations, ran
from kernels.gru import gru
from kernels.linear import linear
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.selective_scan import selective_scan
from kernels.selective_state_update import selective_state_update, selective_state_update_
from kernels.swiglu import swiglu

__all__ = [
    "additive_attention",
    "attention",
    "attentive_gru",
    "backends",
    "causal_conv1d",
    "causal_conv1d_update_",
    "fallbacks",
    "forget",
    "gru",
    "linear",
    "operations",
    "ran",
    "rms_norm",
    "rotary",
    "selective_scan",
    "selective_state_update",
    "selective_state_update_",
    "swiglu",
]
