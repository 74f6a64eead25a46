"""What the doctor says of a machine and of what is installed: from figures that are made up, and from the real ones."""

from __future__ import annotations

import os
import platform
import re
import time
import types
from importlib.metadata import PackageNotFoundError, requires, version

import psutil
import pytest

import asyncsave
from asyncsave import cores as cores_module
from asyncsave.doctor import accelerator, host
from asyncsave.doctor.accelerator import ask_torch, judge
from asyncsave.doctor.check import Check
from asyncsave.doctor.containers import cpu_quota, memory_limit
from asyncsave.doctor.host import limits, memory, processors, shared_memory, timer
from asyncsave.doctor.software import EXTRAS, checksums, extras, packages
from asyncsave.errors import OptionError

GIB = 1 << 30
V2, V1 = "0::/a/b\n", "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n"


@pytest.fixture
def kernel(tmp_path):
    """Return a function that makes the kernel's files, and the arguments by which they are found."""

    def make(lines="", groups=None, huge=None):
        files = {f"fs/{name}": text for name, text in (groups or {}).items()} | {"proc/self/cgroup": lines}
        if huge is not None:
            files["sys/kernel/mm/transparent_hugepage/enabled"] = huge
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return {"proc": str(tmp_path / "proc"), "mount": str(tmp_path / "fs")}

    return make


def by_name(checks):
    """Return what is said, without the remedies."""
    return {check.name: (check.ok, check.value) for check in checks}


def packages_of(**found):
    """Pretend that these packages are installed, and no others."""

    def ask(name):
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    return ask


@pytest.mark.parametrize(
    ("lines", "groups", "limit"),
    [
        (V2, {"a/b/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        (V2, {"a/b/memory.max": "max\n", "a/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        (V2, {"memory.max": f"{GIB}\n", "a/b/memory.max": f"{2 * GIB}\n"}, GIB),
        (V2, {"a/b/memory.max": "max\n"}, None),
        (V2, {"a/b/memory.max": "many\n"}, None),
        (V2, {}, None),
        (V1, {"memory/a/b/memory.limit_in_bytes": f"{3 * GIB}\n"}, 3 * GIB),
        (V1, {"memory/a/b/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (V1, {"memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ("0::/../../outside\n", {"memory.max": f"{GIB}\n"}, GIB),
        ("nonsense\n\n", {}, None),
    ],
)
def test_the_containers_memory(kernel, lines, groups, limit):
    """The tightest group counts, of both versions of the interface; what cannot be read does not."""
    assert memory_limit(**kernel(lines, groups)) == limit


@pytest.mark.parametrize(
    ("lines", "groups", "quota"),
    [
        (V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
        (V2, {"a/b/cpu.max": "max 100000\n"}, None),
        (V2, {"a/b/cpu.max": "100000 0\n"}, None),
        (V2, {"a/b/cpu.max": "100000\n"}, None),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "50000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 0.5),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "50000\n"}, None),
    ],
)
def test_the_containers_processors(kernel, lines, groups, quota):
    """A quota is a share of a period, or there is none."""
    assert cpu_quota(**kernel(lines, groups)) == quota


def test_a_system_without_control_groups(tmp_path):
    """There are no limits to be found."""
    nowhere = {"proc": str(tmp_path / "no"), "mount": str(tmp_path / "where")}
    assert memory_limit(**nowhere) is None
    assert cpu_quota(**nowhere) is None


@pytest.mark.parametrize(("available", "ok"), [(GIB, True), (GIB - 1, False)])
def test_memory_that_is_left(kernel, monkeypatch, available, ok):
    """Machine, container, what is left of both, swap and huge pages: each has its own line."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=8 * GIB, available=available))
    monkeypatch.setattr(psutil, "swap_memory", lambda: types.SimpleNamespace(total=GIB, used=GIB // 2))
    where = kernel(V2, {"a/b/memory.max": f"{4 * GIB}\n"}, "always [madvise] never\n")
    assert by_name(memory(**where, sys=where["proc"].replace("proc", "sys"))) == {
        "memory_bytes": (True, 8 * GIB),
        "memory_limit_bytes": (True, 4 * GIB),
        "available_bytes": (ok, available),
        "swap_bytes": (True, GIB // 2),
        "huge_pages": (True, "madvise"),
    }


def test_memory_of_the_container_that_is_left(kernel):
    """The container's own limit counts where it is tighter than the machine."""
    groups = {
        "a/b/memory.max": f"{GIB}\n",
        "a/b/memory.current": f"{GIB - 5}\n",
        "a/b/memory.stat": "inactive_file 0\n",
    }
    assert by_name(memory(**kernel(V2, groups)))["available_bytes"] == (False, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[always] madvise never\n", (True, "always")), ("always madvise [never]\n", (False, "never")), ("", (None, None)),
     (None, (None, None))],
)  # fmt: skip
def test_huge_pages(kernel, tmp_path, text, expected):
    """Those that were switched off are a finding; a system that says nothing is none."""
    kernel(huge=text)
    assert by_name([host._huge_pages(str(tmp_path / "sys"))])["huge_pages"] == expected


def _silent():
    raise RuntimeError("no swap here")


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda: types.SimpleNamespace(total=0, used=0), (True, 0)),
        (lambda: types.SimpleNamespace(total=100, used=51), (False, 51)),
        (_silent, (None, None)),
    ],
)
def test_swap(ask, expected):
    """More than half of it in use is a finding; none at all is fine."""
    assert by_name([host._swap(ask)])["swap_bytes"] == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, [True, True, True]),
        (1 << 60, [True, True, True]),
        (4096, [True, False, True]),
        (256, [True, False, False]),
    ],
)
def test_limits(found, expected):
    """No limit is fine, and so is a locked memory of any size; small files and few are findings."""
    checks = limits(ask=lambda _: found)
    assert [check.name for check in checks] == ["memlock_bytes", "file_size_bytes", "open_files"]
    assert [(check.ok, check.value) for check in checks] == [(ok, found) for ok in expected]


def test_limits_of_this_process():
    """The system's own, by its own numbers."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        assert by_name(limits())["open_files"] == (False, 300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_system_without_limits(monkeypatch):
    """No such module, or no such limit: nothing is known."""
    monkeypatch.setattr(host, "resource", None)
    assert {check.ok for check in limits()} == {None}


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(64 << 20, (False, 64 << 20)), (GIB, (True, GIB)), (None, (None, None))]
)
def test_shared_memory(nbytes, expected):
    """A container's 64 MB are a finding; a system without has none."""
    statvfs = None if nbytes is None else lambda _: types.SimpleNamespace(f_blocks=nbytes // 4096, f_frsize=4096)
    assert by_name([shared_memory(statvfs=statvfs)])["shm_bytes"] == expected


def test_shared_memory_that_is_not_there(tmp_path):
    """As on macOS."""
    assert shared_memory(path=str(tmp_path / "shm")).ok is None


@pytest.mark.parametrize(
    ("usable", "cpu", "load", "expected"),
    [
        (4, "max 100000", 8.0, [True, True, True]),
        (4, "max 100000", 8.01, [True, True, False]),
        (4, "200000 100000", 4.01, [True, True, False]),
        (1, "max 100000", 0.0, [False, True, True]),
        (4, "150000 100000", 0.0, [True, False, True]),
    ],
)
def test_processors(kernel, monkeypatch, usable, cpu, load, expected):
    """One processor is too few, and so is a quota of less than two; busy is twice as many programs as processors."""
    monkeypatch.setattr(host, "cores", lambda: usable)
    checks = processors(**kernel(V2, {"a/b/cpu.max": f"{cpu}\n"}), load=lambda: (load, 0, 0))
    assert [check.name for check in checks] == ["cpus", "affinity", "cpu_quota", "load"]
    assert [check.ok for check in checks] == [True, *expected]


def test_a_system_that_does_not_know_its_processors(kernel, monkeypatch):
    """No affinity, no load: what is known is still told."""
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.delattr(cores_module.os, "sched_getaffinity", raising=False)
    checks = {check.name: check for check in processors(**kernel())}
    assert checks["affinity"].value == os.cpu_count()
    assert (checks["load"].ok, checks["load"].value) == (None, None)


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [(1e-9, (True, 1)), (1e-3, (True, 1_000_000)), (15.6e-3, (False, 15_600_000)), (0, (True, 1))],
)
def test_the_clock(resolution, expected):
    """One that does not see a millisecond is a finding."""
    assert by_name([timer(resolution=resolution)])["timer_ns"] == expected


def test_this_machines_clock():
    """The clock by which everything is measured is fine here."""
    assert timer().ok


@pytest.mark.parametrize(
    ("found", "torch", "isal"),
    [
        ({"torch": "2.6.0+cu124", "isal": "1.7.0"}, (True, "2.6.0+cu124"), (True, "1.7.0")),
        ({"torch": "2.13.0a0+git1", "isal": "1"}, (True, "2.13.0a0+git1"), (True, "1")),
        ({"torch": "2.5.1"}, (False, "2.5.1"), (False, None)),
        ({}, (False, None), (False, None)),
    ],
)
def test_packages(found, torch, isal):
    """Versions are looked up, not imported; what is missing or too old is a finding."""
    assert by_name(packages(ask=packages_of(**found))) == {
        "asyncsave": (True, asyncsave.__version__),
        "python": (True, platform.python_version()),
        "torch": torch,
        "isal": isal,
    }


def test_extras_that_are_there():
    """With the versions of all their packages."""
    found = packages_of(rich="1", typer="2", matplotlib="3.1")
    assert extras(ask=found) == [
        Check("extra_cli", ok=True, value="rich 1, typer 2"),
        Check("extra_plots", ok=True, value="matplotlib 3.1"),
    ]


def test_extras_that_are_not_there():
    """It is no fault to have none: how to get them is said."""
    cli, plots = extras(ask=packages_of(rich="1"))
    assert (cli.ok, cli.value, plots.ok, plots.value) == (None, "rich 1", None, None)
    assert "pip install 'asyncsave[plots]'" in plots.remedy


def test_extras_are_those_of_the_package():
    """What the package's own metadata says each extra brings."""
    found = {extra: set() for extra in EXTRAS}
    for line in requires("asyncsave") or []:
        for extra in EXTRAS:
            if re.search(rf"""extra == ["']{extra}["']""", line):
                found[extra].add(re.match(r"[\w-]+", line)[0])
    assert {extra: set(names) for extra, names in EXTRAS.items()} == found


def test_checksums():
    """A rate below that of any disk is a finding: the library's quick code is not in use then."""
    assert checksums().value > 0
    slow = checksums(crc=lambda _: time.sleep(0.02))
    assert not slow.ok
    assert slow.value > 0


CUDA = {"cuda": "12.8", "works": True, "gpus": ["H100", "H100"]}
NONE = {"cuda": "12.8", "works": False, "gpus": []}


@pytest.mark.parametrize(
    ("answer", "driver", "expected"),
    [
        (CUDA, True, [(True, True), (True, "12.8"), (True, "2 x H100")]),
        ({**CUDA, "gpus": ["A10"]}, True, [(True, True), (True, "12.8"), (True, "A10")]),
        (NONE, False, [(True, True), (True, "12.8"), (True, None)]),
        (NONE, True, [(True, True), (False, "12.8"), (None, None)]),
        ({**NONE, "cuda": None}, True, [(True, True), (False, None), (None, None)]),
        ({**NONE, "cuda": None}, False, [(True, True), (True, None), (True, None)]),
        ("ImportError: libcudart", True, [(False, False), (None, None), (None, None)]),
        (None, True, [(None, None)] * 3),
    ],
)
def test_cuda(tmp_path, answer, driver, expected):
    """A driver and no CUDA is a finding; no driver and no CUDA is a machine without a GPU."""
    if driver:
        (tmp_path / "driver" / "nvidia").mkdir(parents=True)
        (tmp_path / "driver" / "nvidia" / "version").touch()
    checks = judge(answer, proc=str(tmp_path))
    assert [check.name for check in checks] == ["torch_import", "cuda", "gpu"]
    assert [(check.ok, check.value) for check in checks] == expected
    assert all((check.remedy is None) is (check.ok is True) for check in checks)


def test_torch_is_asked_elsewhere():
    """Its own answer, from a process of its own."""
    answer = ask_torch()
    assert answer == {
        "cuda": pytest.importorskip("torch").version.cuda,
        "works": bool(answer["gpus"]),
        "gpus": answer["gpus"],
    }


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import asyncsave_is_not_there_", "ModuleNotFoundError: No module named 'asyncsave_is_not_there_'"),
        ("import os; os.abort()", "signal 6"),
        ("raise SystemExit(5)", "exit code 5"),
        ("print('hello')", "something else"),
        ("", "something else"),
        ("print('\\n' + '{\"a\": ')", "something else"),
    ],
)
def test_a_torch_that_does_not_start(program, why, monkeypatch):
    """Whatever becomes of it, it is told in one line, and nothing of it is in this process."""
    monkeypatch.setenv("PYTHONFAULTHANDLER", "")
    answer = ask_torch(program=program)
    assert why in answer
    assert "\n" not in answer
    assert why in judge(answer)[0].remedy


def test_a_torch_that_hangs():
    """It is not waited for, for ever."""
    assert ask_torch(program="import time; time.sleep(600)", timeout=0.5) == "no answer within 0.5 s"


def test_a_program_without_a_python(monkeypatch):
    """One that is frozen has nobody to ask; a Python that is gone does not start."""

    def frozen():
        raise OptionError("frozen")

    monkeypatch.setattr(accelerator, "interpreter", frozen)
    assert "no Python of its own" in ask_torch()
    monkeypatch.setattr(accelerator, "interpreter", lambda: "/nowhere/python")
    assert "Python does not start" in ask_torch()


def test_what_lies_in_the_users_folder_is_not_torch(tmp_path, monkeypatch):
    """A file called torch.py where the command runs is not run."""
    (tmp_path / "torch.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    assert ask_torch(program="import torch; print(torch.__file__)") == "it said something else than was asked"


def test_the_versions_here():
    """The real ones are found without an import."""
    assert by_name(packages())["torch"][1] == version("torch")
