"""What this machine can give: cores, memory and GPUs, within the limits that a container or cluster sets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments import resources
from experiments.errors import UserError


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("none", None), ("4GiB", 4 * 2**30), ("1.5 MB", 1_500_000), ("2kib", 2048), ("99999999TiB", sys.maxsize)],
)
def test_a_memory_limit_is_a_size(setting: str, expected: int | None) -> None:
    assert resources.memory_limit(setting, 3) == expected


@pytest.mark.parametrize("setting", ["", "4", "GiB", "-1GiB", "4 gigs", "0GiB"])
def test_what_is_no_size_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match="memory_limit must be auto"):
        resources.memory_limit(setting, 1)


def test_by_default_jobs_share_most_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "free_memory", lambda: 10 * 2**30)
    monkeypatch.setattr(resources, "cores", lambda: 16)
    assert resources.memory_limit("auto", 4) == 2 * 2**30
    assert resources.default_jobs() == 5
    assert resources.default_jobs(2) == 2
    assert resources.default_jobs(8) == 1


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The control group of a job two levels below the root, which on a cluster holds the limits."""
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    monkeypatch.setattr(resources, "_OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory,x:/job\n3:cpu,cpuacct:/job\n0::/slurm/job\n")
    for place in ("slurm/job", "memory/job", "cpu"):
        (tmp_path / place).mkdir(parents=True)
    return tmp_path


def test_a_share_of_processor_time_limits_the_cores(monkeypatch: pytest.MonkeyPatch, group: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    (group / "slurm" / "job" / "cpu.max").write_text("max 100000\n")
    assert resources.cores() == 64
    (group / "slurm" / "cpu.max").write_text("250000 100000\n")
    assert resources.cores() == 3
    for name, text in {"quota": "-1", "period": "100000"}.items():
        (group / "cpu" / f"cpu.cfs_{name}_us").write_text(text)
    assert resources.cores() == 3
    (group / "cpu" / "cpu.cfs_quota_us").write_text("20000")
    assert resources.cores() == 1


def test_a_group_of_version_1_limits_what_is_free(group: Path) -> None:
    (group / "memory" / "job" / "memory.limit_in_bytes").write_text("9000")
    (group / "memory" / "job" / "memory.usage_in_bytes").write_text("5000")
    (group / "memory" / "job" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 700\n")
    assert resources.free_memory() == 4700


def test_a_container_limits_what_is_free(group: Path) -> None:
    job = group / "slurm" / "job"
    machine = resources.free_memory()
    assert machine > 0
    for name, text in {
        "memory.max": "9000",
        "memory.current": "5000",
        "memory.stat": "anon 1\ninactive_file 700\n",
    }.items():
        (job / name).write_text(text)
    assert resources.free_memory() == 4700
    (job / "memory.max").write_text("max")
    assert resources.free_memory() == pytest.approx(machine, rel=0.2)


def test_gpus_are_named_as_the_user_named_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert resources.visible_gpus("auto") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a1")
    assert resources.visible_gpus("gpu") == ["4", "GPU-a1"]
    assert resources.visible_gpus("cpu") == []


def test_a_cell_of_several_devices_has_gpus_of_its_own() -> None:
    assert resources.groups(["4", "6", "7"], 1) == ("4", "6", "7")
    assert resources.groups(["0", "1", "2", "3", "4"], 2) == ("0,1", "2,3")
    assert resources.groups(["0"], 2) == ()
    assert resources.groups([], 1) == ()
