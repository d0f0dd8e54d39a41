"""How much memory may be taken: what users write, what is free, what each process has, and how work is cut."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppl_vi.runtime import memory
from ppl_vi.runtime.memory import (
    MemoryBoundError,
    allowing,
    at_once,
    bounded,
    bytes_of,
    free_bytes,
    num_sharing,
    parsed,
    require,
    room,
    share,
    shortage,
    status_bytes,
)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("500MB", 500e6),
        ("4GB", 4e9),
        ("4GiB", 4 * 2**30),
        ("1.5 gb", 1.5e9),
        (".5T", 5e11),
        ("300k", 3e5),
        ("77B", 77.0),
        ("2", 2 * 2**30),
    ],
)
def test_amounts_are_read(text: str, num_bytes: float) -> None:
    assert parsed(text) == num_bytes == bytes_of(text)


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "0MB", "nan", "inf", "4 GB please", "4iB", "1e9"])
def test_what_is_no_amount_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="expected an amount of memory such as 500MB, 4GB or 4GiB") as caught:
        parsed(text)
    assert "\n" not in str(caught.value)


def test_numbers_are_gib_and_others_are_refused() -> None:
    assert bytes_of(1.5) == 1.5 * 2**30
    assert bytes_of(None) is None
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            bytes_of(wrong)
    for kind in (True, [4]):
        with pytest.raises(TypeError, match=f"got {type(kind).__name__}"):
            bytes_of(kind)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /proc and /sys/fs/cgroup of a machine with 10 GiB free."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {10 * 2**20} kB\n")
    monkeypatch.setattr(memory, "MEMORY_FILE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    return tmp_path


def test_without_control_groups_what_the_machine_has_is_free(machine: Path) -> None:
    assert free_bytes() == 10 * 2**30


def test_the_tightest_control_group_limits_what_is_free(machine: Path) -> None:
    (machine / "cgroup").write_text("0::/outer/inner\n")
    inner = machine / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    assert free_bytes() == 10 * 2**30
    (machine / "outer" / "memory.max").write_text("3000000000\n")
    (machine / "outer" / "memory.current").write_text("1000000000\n")
    assert free_bytes() == 2e9


def test_control_groups_of_version_1_count_too(machine: Path) -> None:
    (machine / "cgroup").write_text("5:cpu:/box\n4:memory:/box\n")
    box = machine / "memory" / "box"
    box.mkdir(parents=True)
    (box / "memory.limit_in_bytes").write_text("700\n")
    (box / "memory.usage_in_bytes").write_text("300\n")
    assert free_bytes() == 400


def test_a_bound_holds_in_its_block_alone() -> None:
    before = room()
    with bounded(status_bytes("VmRSS") + 1e9):
        assert room() == pytest.approx(1e9, rel=0.05)  # the process may have grown by some pages meanwhile
        with allowing(100.0):
            assert room() == 100
        with allowing(None):
            assert room() == pytest.approx(1e9, rel=0.05)
    assert room() == pytest.approx(before, rel=0.5)  # of what is free, which others change


def test_a_bound_below_what_is_held_is_refused() -> None:
    said = pytest.raises(MemoryBoundError, match=r"^1 MB of memory may be taken, and Python .* takes .* already")
    with said, bounded(1e6):
        pass


def test_work_is_cut_by_halves_to_half_of_the_room() -> None:
    with allowing(1000.0):
        assert at_once(64, 1.0) == 64
        assert at_once(64, 8.0) == 32  # 256 bytes; 64 would take 512
        assert at_once(100, 20.0) == 25
        assert at_once(7, 1e9) == 1


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    with allowing(1e6):
        require(9e5, "a look")
        with pytest.raises(MemoryBoundError, match=r"^a look takes about 2 GB of memory, and 1 MB may be taken: wait$"):
            require(2e9, "a look", "wait")


def test_processes_share_what_is_left_beside_this_one() -> None:
    held = status_bytes("VmRSS")
    assert share(held + 8e9, 4) == pytest.approx(2e9, rel=0.05)
    assert share(5e9, 1) == 5e9
    with allowing(6e9):
        assert share(None, 2) == pytest.approx(3e9, rel=0.05)


def test_fewer_processes_are_started_where_memory_is_short() -> None:
    each = status_bytes("VmRSS") + memory.MIN_ROOM
    assert num_sharing(20 * each, 4) == 4
    assert num_sharing(status_bytes("VmRSS") + 2.5 * each, 4) == 2
    assert num_sharing(each, 4) == 1


def test_only_a_lack_of_memory_counts_as_one() -> None:
    assert "more memory than there is" in shortage(MemoryError())
    assert "more memory than there is" in shortage(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    )
    assert not shortage(ValueError("no"))


def test_the_most_a_process_held_is_what_it_touched() -> None:
    code = """
from ppl_vi.runtime.memory import status_bytes
before = status_bytes("VmHWM")
held = bytearray(2**27)
print(status_bytes("VmHWM") - before)
"""
    found = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(2**27, rel=0.05)
