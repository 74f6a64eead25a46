"""How much memory may be taken: the machine's, and every control group's above us."""

from __future__ import annotations

import psutil
import pytest

from asyncsave.staging import headroom as headroom_module
from asyncsave.staging.headroom import headroom

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend a machine with 10 GiB available; return a function that asks for the headroom."""

    class Memory:
        available = 10 * GIB

    monkeypatch.setattr(headroom_module.psutil, "virtual_memory", Memory)

    def ask(lines):
        (tmp_path / "cgroup").write_text(lines)
        return headroom(proc=str(tmp_path / "cgroup"), mount=str(tmp_path / "fs"))

    return ask


def group2(folder, limit, current, cache=0):
    """Make a group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 7\n")


def group1(folder, limit, usage, cache=0):
    """Make a group of version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"cache 5\ninactive_file 1\ntotal_inactive_file {cache}\n")


V2, V1 = "0::/a/b\n", "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n"


def test_version_2(machine, tmp_path):
    """What counts is limit - usage + clean page cache."""
    group2(tmp_path / "fs/a/b", 3 * GIB, 2 * GIB, GIB // 2)
    assert machine(V2) == GIB + GIB // 2


def test_version_1(machine, tmp_path):
    """The same for version 1, whose figures have other names."""
    group1(tmp_path / "fs/memory/a/b", 3 * GIB, 2 * GIB, GIB // 2)
    assert machine(V1) == GIB + GIB // 2


@pytest.mark.parametrize("tightest", ["a/b", "a", "."])
@pytest.mark.parametrize(("make", "root", "lines"), [(group2, "fs", V2), (group1, "fs/memory", V1)], ids=["v2", "v1"])
def test_the_tightest_group_above_counts(machine, tmp_path, make, root, lines, tightest):
    """A limit anywhere between the process and the root counts; the root is a container's own group."""
    for name in ("a/b", "a", "."):
        make(tmp_path / root / name, (2 if name == tightest else 5) * GIB, GIB)
    assert machine(lines) == GIB


def test_a_path_that_only_the_host_knows(machine, tmp_path):
    """In a container the path may lead nowhere; its root is the container's group."""
    group2(tmp_path / "fs", 2 * GIB, GIB)
    assert machine("0::/kubepods/pod1/container2\n") == GIB
    assert machine("0::/../../outside\n") == GIB


def test_unlimited(machine, tmp_path):
    """Groups without a limit leave the machine's own figure."""
    group2(tmp_path / "fs/a/b", "max", GIB)
    assert machine(V2) == 10 * GIB
    group1(tmp_path / "fs/memory/a/b", 9223372036854771712, GIB)
    assert machine(V1) == 10 * GIB


def test_the_machine_may_be_tighter(machine, tmp_path):
    """A limit above what the machine has does not help."""
    group2(tmp_path / "fs/a/b", 100 * GIB, GIB)
    assert machine(V2) == 10 * GIB


def test_over_the_limit(machine, tmp_path):
    """Less than nothing is nothing."""
    group2(tmp_path / "fs/a/b", GIB, 2 * GIB)
    assert machine(V2) == 0


@pytest.mark.parametrize("lost", ["memory.max", "memory.current", "memory.stat"])
def test_missing_files(machine, tmp_path, lost):
    """A group that does not say all is left out."""
    group2(tmp_path / "fs/a/b", 2 * GIB, GIB)
    (tmp_path / "fs/a/b" / lost).unlink()
    assert machine(V2) == 10 * GIB


def test_nonsense_in_a_file(machine, tmp_path):
    """A figure that is none is left out."""
    group2(tmp_path / "fs/a/b", "many", GIB)
    assert machine(V2) == 10 * GIB


def test_no_cache_figure(machine, tmp_path):
    """Without a figure for the page cache none is counted."""
    group2(tmp_path / "fs/a/b", 2 * GIB, GIB)
    (tmp_path / "fs/a/b/memory.stat").write_text("anon 5\n")
    assert machine(V2) == GIB


def test_no_memory_controller(machine):
    """Groups of other controllers say nothing about memory."""
    assert machine("3:cpuset:/\n1:cpu,cpuacct:/x\n") == 10 * GIB


def test_no_control_groups(tmp_path):
    """Where there are none the machine's figure stands."""
    assert headroom(proc=str(tmp_path / "none")) <= psutil.virtual_memory().total


def test_this_machine():
    """The real thing is between nothing and all."""
    assert 0 < headroom() <= psutil.virtual_memory().total
