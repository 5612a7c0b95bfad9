"""What all tests of kernels share."""

import pytest

from kernels import native


@pytest.fixture(autouse=True)
def threads_for_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases are to run on as many threads as large ones."""
    monkeypatch.setattr(native, "_WORK_PER_THREAD", 2**14)
