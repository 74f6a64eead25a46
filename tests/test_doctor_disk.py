"""What the doctor says of a file system: from the kernel's table, from its figures, and by trying."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import types

import psutil
import pytest
from gates import SHORT, Failing, Wrapped

from asyncsave import memory
from asyncsave.doctor import abilities as abilities_module
from asyncsave.doctor import rates as rates_module
from asyncsave.doctor.abilities import ABILITIES, IS_THERE, abilities, memfd
from asyncsave.doctor.check import Check
from asyncsave.doctor.disk import kind_of, mount, room
from asyncsave.doctor.examination import examine
from asyncsave.doctor.rates import RATES, judge, rates
from asyncsave.doctor.scratch import Scratch
from asyncsave.errors import OptionError, SaveError
from asyncsave.storage.system import System

GIB = 1 << 30
TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /run rw - tmpfs none rw,size=1g
25 22 0:23 / /merged rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
26 22 0:24 / /volatile rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile
27 22 0:25 / /user rw - fuse.sshfs host: rw
32 22 0:30 / /nfs rw - nfs4 host:/ rw
33 22 0:31 / /host rw - virtiofs share rw
"""


@pytest.fixture
def mountinfo(tmp_path):
    """Return the path of a table of mounts."""
    (tmp_path / "mountinfo").write_text(TABLE)
    return str(tmp_path / "mountinfo")


@pytest.fixture
def tried(tmp_path):
    """Return a function that tries everything on a system, in a folder that is empty again after it."""

    def run(system):
        folder = tmp_path / "tried"
        folder.mkdir()
        scratch = Scratch(system, str(folder))
        with scratch, scratch:
            scratch.make()
            found = {check.name: check for check in abilities(scratch, system)}
        assert list(folder.iterdir()) == []
        folder.rmdir()
        assert tuple(found) == ABILITIES
        return found

    return run


def outcomes(checks):
    """Return what is said, without the remedies."""
    return [(check.name, check.ok, check.value) for check in checks]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/me", [True, "ext4", True, "disk", True, True]),
        ("/run/x", [True, "tmpfs", True, "memory", False, False]),
        ("/merged", [True, "overlay", False, "overlay", True, True]),
        ("/volatile", [True, "overlay", False, "overlay", False, False]),
        ("/user/a", [True, "fuse.sshfs", True, "user space", False, False]),
        ("/nfs/a", [True, "nfs4", True, "network", True, True]),
        ("/host/a", [True, "virtiofs", True, "host", True, True]),
    ],
)
def test_the_mount(mountinfo, folder, expected):
    """Its type, where its bytes are, and whether a flush means anything there."""
    checks = mount(folder, mountinfo=mountinfo)
    assert [check.name for check in checks] == ["file_system", "location", "durable"]
    assert [part for check in checks for part in (check.ok, check.value)] == expected


@pytest.mark.parametrize(("folder", "reason"), [("/run", "memory"), ("/volatile", "volatile"), ("/user", "user space")])
def test_why_it_is_not_durable(mountinfo, folder, reason):
    """The remedy says which of the three it is."""
    assert reason in mount(folder, mountinfo=mountinfo)[2].remedy


def test_a_system_without_a_table_of_mounts(tmp_path):
    """Nothing is guessed."""
    checks = mount("/", mountinfo=str(tmp_path / "none"))
    assert outcomes(checks) == [("file_system", None, None), ("location", None, None), ("durable", None, None)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("xfs", "disk"), ("apfs", "disk"), ("fuseblk", "user space"), ("lustre", "network"), ("gfs2", "network"),
     ("9p", "host"), ("ramfs", "memory")],
)  # fmt: skip
def test_kinds(name, kind):
    """What nobody knows is a disk."""
    assert kind_of(name) == kind


def figures(free=2 * GIB, inodes=10_000, total=20_000):
    """Pretend what statvfs says."""
    found = types.SimpleNamespace(f_bavail=free // 512, f_frsize=512, f_files=total, f_favail=inodes)
    return lambda _: found


@pytest.mark.parametrize(
    ("statvfs", "expected"),
    [
        (figures(), [("free_bytes", True, 2 * GIB), ("free_inodes", True, 10_000)]),
        (figures(free=GIB), [("free_bytes", True, GIB), ("free_inodes", True, 10_000)]),
        (figures(free=GIB - 512), [("free_bytes", False, GIB - 512), ("free_inodes", True, 10_000)]),
        (figures(inodes=999), [("free_bytes", True, 2 * GIB), ("free_inodes", False, 999)]),
        (figures(inodes=0, total=0), [("free_bytes", True, 2 * GIB), ("free_inodes", True, None)]),
        (None, [("free_bytes", None, None), ("free_inodes", None, None)]),
    ],
    ids=["much", "enough", "little", "few names", "names as needed", "no such call"],
)
def test_room(statvfs, expected):
    """What is free, for whom has no privileges."""
    assert outcomes(room("/", statvfs=statvfs)) == expected


def test_a_file_system_that_does_not_answer(tmp_path):
    """Its own words are told."""
    checks = room(str(tmp_path / "absent"))
    assert [check.ok for check in checks] == [None, None]
    assert all("No such file or directory" in check.remedy for check in checks)


def test_everything_is_tried_for_real(tried):
    """Each has an answer on this file system, and a remedy exactly if it is not fine."""
    found = tried(System())
    assert found["flock"].ok
    assert found["clock_skew_s"].ok
    for check in found.values():
        assert check.ok is not None or not IS_THERE[check.name]
        assert (check.remedy is None) is (check.ok is True)


class Refusing(Wrapped):
    """A file system that has nothing: every ability is refused, each in the way that is its own."""

    def _call(self, name, *args, **kwargs):
        if name == "allocate":
            return None
        if name in {"exchange", "is_unshared"}:
            return False
        if name == "set_direct":
            return not kwargs["direct"]
        if name == "lock":
            raise OSError(errno.ENOLCK, "no locks")
        return super()._call(name, *args, **kwargs)


@pytest.mark.skipif(not all(IS_THERE.values()), reason="this system lacks some of it")
def test_a_file_system_that_can_nothing(tried):
    """Each ability is a finding with a remedy of its own; the clock has nothing to do with it."""
    found = tried(Refusing())
    clock = found.pop("clock_skew_s")
    assert clock.ok
    assert [(check.ok, check.value) for check in found.values()] == [(False, False)] * len(found)
    assert len({check.remedy for check in found.values()}) == len(found)


@pytest.mark.parametrize("method", ["pwrite", "pread_into"])
@pytest.mark.parametrize(("number", "ok"), [(errno.EINVAL, False), (errno.EOPNOTSUPP, False), (errno.EIO, None)])
def test_direct_io_that_is_refused_late(tried, method, number, ok):
    """Some take the flag and refuse the write: that is a no. A broken disk is another matter."""
    if not tried(System())["direct_io"].ok:
        pytest.skip("this file system has no direct I/O")
    assert tried(Failing(method, number))["direct_io"].ok is ok


def test_direct_io_that_writes_half(tried):
    """A block that is not written as a whole is a no."""
    if not tried(System())["direct_io"].ok:
        pytest.skip("this file system has no direct I/O")
    assert tried(Failing("pwrite", SHORT))["direct_io"].ok is False


class Unmoved(Wrapped):
    """Says that names were swapped, and blocks reserved, and has done nothing; its locks keep nobody out."""

    def _call(self, name, *args, **kwargs):
        if name == "exchange":
            return True
        if name == "allocate":
            return os.truncate(args[0], args[1])
        if name == "lock":
            return True
        return super()._call(name, *args, **kwargs)


@pytest.mark.skipif(not all(IS_THERE.values()), reason="this system lacks some of it")
def test_nothing_is_believed(tried):
    """What says yes and does nothing is found out."""
    found = tried(Unmoved())
    assert [found[name].ok for name in ("rename_exchange", "fallocate", "flock")] == [False, False, False]


@pytest.mark.parametrize("name", sorted(IS_THERE))
def test_a_system_without_it(tried, monkeypatch, name):
    """What no file system of this system has is no finding, but not there either."""
    monkeypatch.setitem(IS_THERE, name, value=False)
    found = tried(System())[name]
    assert (found.ok, found.value) == (None, False)
    assert found.remedy


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_could_not_be_tried(tried, number):
    """A disk that fails in the midst: the rest is None with its words, and nothing is left."""
    found = tried(Failing("open", number, only=lambda path, flags, *_, **__: flags & os.O_EXCL, forever=True))
    assert {check.ok for name, check in found.items() if IS_THERE.get(name, True)} == {None}
    assert os.strerror(number) in found["flock"].remedy


def test_a_clock_that_is_another(tried, monkeypatch):
    """An hour between the file system's clock and this machine's is a finding; its sign says who is ahead."""
    real = abilities_module.time.time
    monkeypatch.setattr(abilities_module, "time", types.SimpleNamespace(time=lambda: real() + 3600))
    check = tried(System())["clock_skew_s"]
    assert not check.ok
    assert check.value == pytest.approx(-3600, abs=60)


def test_memory_by_a_descriptor():
    """It is tried too, and closed again."""
    assert memfd().ok is (True if hasattr(os, "memfd_create") else None)


def test_memory_by_a_descriptor_is_refused(monkeypatch):
    """What lies in a file instead is a finding where the system could do better, and none where it cannot."""
    monkeypatch.setattr(memory, "_memfd", lambda: None)
    if hasattr(os, "memfd_create"):
        assert (memfd().ok, memfd().value) == (False, False)
        monkeypatch.delattr(os, "memfd_create")
    assert (memfd().ok, memfd().value) == (None, False)


def test_no_descriptor_at_all():
    """The system's words are told."""

    def make():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    check = memfd(make=make)
    assert not check.ok
    assert os.strerror(errno.EMFILE) in check.remedy


def test_rates_are_measured(tmp_path):
    """All three, of a small file; the folder is empty after it."""
    scratch = Scratch(System(), str(tmp_path))
    with scratch, scratch:
        scratch.make()
        checks = rates(scratch, System(), 20 << 20, free=None, headroom=GIB)
    assert tuple(check.name for check in checks) == RATES
    assert all(check.value > 0 for check in checks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("longest", [0.0, 1e9])
def test_a_slow_disk_is_not_kept_busy(tmp_path, monkeypatch, longest):
    """Where the large probe would take too long, the rates are those of the small one: both are whole answers."""
    sizes = []

    class Disk(rates_module.RawDisk):
        def write(self, name, nbytes):
            sizes.append(nbytes)
            return super().write(name, nbytes)

    monkeypatch.setattr(rates_module, "RawDisk", Disk)
    monkeypatch.setattr(rates_module, "_LONGEST", longest)
    scratch = Scratch(System(), str(tmp_path))
    with scratch, scratch:
        scratch.make()
        assert all(check.value for check in rates(scratch, System(), 18 << 20, free=None, headroom=GIB))
    assert sizes == ([16 << 20] if not longest else [16 << 20, 18 << 20])


@pytest.mark.parametrize(
    ("free", "headroom", "word"), [(30 << 20, GIB, "room"), (None, 30 << 20, "memory"), (0, 0, "memory")]
)
def test_rates_that_would_take_too_much(tmp_path, free, headroom, word):
    """Neither the disk nor the memory is filled by a probe."""
    scratch = Scratch(System(), str(tmp_path))
    checks = rates(scratch, System(), 16 << 20, free=free, headroom=headroom)
    assert outcomes(checks) == [(name, None, None) for name in RATES]
    assert all(f"not enough {word}" in check.remedy for check in checks)


def test_a_probe_that_fails(tmp_path):
    """The flush fails: the rates are not known, and the words are the disk's."""
    system = Failing("fsync", errno.EIO)
    scratch = Scratch(system, str(tmp_path))
    with scratch, scratch:
        scratch.make()
        checks = rates(scratch, system, 1 << 20, free=None, headroom=GIB)
    assert [check.ok for check in checks] == [None] * 3
    assert os.strerror(errno.EIO) in checks[0].remedy


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((100.0, 100.0, 0.1), [True, True, True]),
        ((99.9, 100.0, 0.1), [False, True, True]),
        ((2000.0, 99.0, 0.001), [True, False, True]),
        ((2000.0, 2000.0, 0.1001), [True, True, False]),
    ],
)
def test_which_rates_are_good_enough(figures, expected):
    """Megabytes per second from above, the milliseconds of a flush from below."""
    assert [check.ok for check in judge(*figures)] == expected


def test_a_folder_that_is_full(tmp_path):
    """Not even a folder can be made: that is a finding with a remedy, and what could not be tried is None."""
    checks = {check.name: check for check in examine(str(tmp_path), system=Failing("mkdir", errno.ENOSPC))}
    assert (checks["writable"].ok, checks["writable"].value) == (False, False)
    assert {checks[name].ok for name in (*ABILITIES, *RATES)} == {None}
    assert checks["python"].ok


@pytest.mark.parametrize(
    ("method", "number"),
    [("mkdir", errno.EROFS), ("mkdir", errno.EACCES), ("mkdir", errno.EPERM), ("mkdir", errno.EIO)],
)
def test_a_folder_that_cannot_be_written_to(tmp_path, method, number):
    """Nothing can be said of it: that is an error, with its path and number."""
    with pytest.raises(SaveError, match=os.strerror(number)) as caught:
        examine(str(tmp_path), system=Failing(method, number))
    assert (caught.value.path, caught.value.errno, caught.value.phase) == (str(tmp_path), number, "target")


@pytest.mark.parametrize("folder", ["", "a\0b"])
def test_what_is_no_folder_at_all(folder):
    """It is refused before anything is looked at."""
    with pytest.raises(OptionError, match="no name of a folder"):
        examine(folder)


def test_every_check_once_and_with_a_remedy(tmp_path):
    """No name comes twice; a remedy is there exactly if something is to be said; values are what JSON can say."""
    checks = examine(str(tmp_path), probe=1 << 20)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for check in checks:
        assert isinstance(check, Check)
        assert isinstance(check.value, (bool, int, float, str, type(None)))
        assert (check.remedy is None) is (check.ok is True)
        assert check.remedy is None or check.remedy.endswith(".")


def test_a_machine_without_memory(tmp_path, monkeypatch):
    """A probe larger than the memory allows is not begun, and the checks that need a file are there all the same."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=GIB, available=1 << 20))
    checks = {check.name: check for check in examine(str(tmp_path), probe=64 << 20)}
    assert checks["write_mb_s"].ok is None
    assert checks["available_bytes"].ok is False
    assert checks["flock"].ok


class Interrupting(Wrapped):
    """Ctrl-C before, or right after, one system call."""

    def __init__(self, at, *, after):
        super().__init__()
        self.calls = 0
        self._at, self._after = at, after

    def _call(self, name, *args, **kwargs):
        self.calls += 1
        if self.calls == self._at:
            if self._after:
                with contextlib.suppress(OSError):
                    super()._call(name, *args, **kwargs)
            raise KeyboardInterrupt
        return super()._call(name, *args, **kwargs)


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="what is left open is read from /proc")
@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_at_every_system_call_leaves_nothing(tmp_path, after):
    """Between any two calls, those of the removal too."""
    folder = tmp_path / "looked-at"
    folder.mkdir()

    def look(system):
        scratch = Scratch(system, str(folder))
        with scratch, scratch:
            scratch.make()
            abilities(scratch, system)

    whole = Interrupting(-1, after=after)
    look(whole)
    for at in range(1, whole.calls + 1):
        with pytest.raises(KeyboardInterrupt):
            look(Interrupting(at, after=after))
        assert list(folder.iterdir()) == [], f"call {at}"
        _close_what_is_inside(folder)
    assert whole.calls > 30


def _close_what_is_inside(folder):
    """Close what an interrupted program leaves to its end: the call had no time to say what it opened."""
    for entry in list(pathlib.Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own
            if str(entry.readlink()).startswith(str(folder)):
                os.close(int(entry.name))
