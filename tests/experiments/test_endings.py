"""Every way in which a cell may end has one name."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import torch

from experiments import endings
from experiments.callbacks import Diverged
from experiments.errors import UserError


def thrown(action: Any) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (thrown(lambda: torch.empty(2**55)), "oom"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (RuntimeError("can't start new thread"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "failed"),
        (RuntimeError("shapes do not match"), "failed"),
        (UserError("expected a, got b"), "failed"),
        (ValueError("memory"), "failed"),
        (Diverged("the loss was nan"), "nan"),
    ],
)
def test_every_ending_has_its_name(error: Exception, status: str) -> None:
    ending = endings.classify(error)
    assert ending["status"] == status
    assert ending["reason"]
