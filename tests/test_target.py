"""Where a checkpoint may go, what is refused at the call, and how the file looks that arrives."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess

import pytest
import torch
from programs import Template
from saves import PATIENCE

import asyncsave
from asyncsave import SaveError
from asyncsave.storage.target import resolve

pytestmark = pytest.mark.usefixtures("backend")

STATE = {"x": torch.arange(10.0)}


def mode_of(path):
    """Return a file's mode bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Let the test set the umask."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def save(open_writer):
    """Return a function that saves and waits, by one writer, which is made for the first save."""
    made = []

    def save(state, path):
        if not made:
            made.append(open_writer())
        return made[0].save(state, path).result(PATIENCE)

    return save


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o027])
def test_a_new_file_has_the_mode_of_open(tmp_path, umask, mask, save):
    """A new checkpoint has the mode bits that ``open`` gives under the umask."""
    umask(mask)
    (tmp_path / "plain").touch()
    save(STATE, tmp_path / "ckpt")
    assert mode_of(tmp_path / "ckpt") == mode_of(tmp_path / "plain") == 0o666 & ~mask


def test_a_umask_that_is_changed_later(tmp_path, umask, save):
    """The umask of the call counts, not the one that was there when the writer was made."""
    umask(0o022)
    save(STATE, tmp_path / "first")
    umask(0o077)
    save(STATE, tmp_path / "ckpt")
    assert mode_of(tmp_path / "ckpt") == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o666, 0o400, 0o640])
def test_a_replaced_file_keeps_its_mode(tmp_path, umask, mode, save):
    """The mode of the file that was there is kept, whatever the umask."""
    umask(0o027)
    (tmp_path / "ckpt").touch()
    (tmp_path / "ckpt").chmod(mode)
    save(STATE, tmp_path / "ckpt")
    assert mode_of(tmp_path / "ckpt") == mode
    assert torch.equal(torch.load(tmp_path / "ckpt")["x"], STATE["x"])


def test_a_recycled_file_keeps_the_targets_mode(tmp_path, save):
    """Mode bits are the target's also where the blocks of an older version are written again."""
    large = {"x": torch.zeros(9 << 20)}
    for _ in range(2):
        save(large, tmp_path / "ckpt")
    (tmp_path / "ckpt").chmod(0o600)
    save(large, tmp_path / "ckpt")
    save(large, tmp_path / "ckpt")
    assert mode_of(tmp_path / "ckpt") == 0o600


def test_a_link_is_followed_and_stays(tmp_path, save):
    """The file behind a symbolic link is replaced, in its own folder; the link is untouched."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "ckpt").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real/ckpt")
    result = save(STATE, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert result.path == str(tmp_path / "link")
    assert torch.equal(torch.load(tmp_path / "real" / "ckpt")["x"], STATE["x"])


def test_a_dangling_link_makes_its_target(tmp_path, save):
    """A link to a file that is not there yet is followed too."""
    (tmp_path / "link").symlink_to("later")
    save(STATE, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "later").is_file()


def test_a_linked_folder_is_fine(tmp_path, save):
    """The folder may be reached over a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(STATE, tmp_path / "link" / "ckpt")
    assert (tmp_path / "real" / "ckpt").is_file()


def test_other_names_of_the_old_file_keep_it(tmp_path, save):
    """A hard link to the old version goes on showing the old version."""
    save({"n": 1}, tmp_path / "ckpt")
    os.link(tmp_path / "ckpt", tmp_path / "kept")
    save({"n": 2}, tmp_path / "ckpt")
    assert torch.load(tmp_path / "kept")["n"] == 1
    assert torch.load(tmp_path / "ckpt")["n"] == 2


NAMES = ["c", "c" * 255, "ü" * 127, "名前 mit Leerzeichen.pt", "-rf", ".hidden", "a\nb", "\udcff\udcfe", "%s", "it's"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_names(tmp_path, name, save):
    """Any name that the file system takes is taken, up to 255 bytes."""
    result = save(STATE, tmp_path / name)
    assert result.path == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert torch.equal(asyncsave.load(tmp_path / name)["x"], STATE["x"])


def test_a_long_path(tmp_path, save):
    """Paths of a thousand bytes and more are fine, as long as the system takes them."""
    folder = tmp_path
    while len(str(folder)) < 3000:
        folder /= "long" * 50
    folder.mkdir(parents=True)
    save(STATE, folder / "ckpt")
    assert (folder / "ckpt").is_file()


def _mkdir(path):
    path.mkdir()
    return path


def _fifo(path):
    os.mkfifo(path)
    return path


def _loop(path):
    path.symlink_to(path.name)
    return path


def _in_file(path):
    path.write_bytes(b"")
    return path / "ckpt"


def _link_to_folder(path):
    path.symlink_to(path.parent)
    return path


REFUSED = {
    "folder": (_mkdir, errno.EISDIR),
    "link to a folder": (_link_to_folder, errno.EISDIR),
    "fifo": (_fifo, errno.EINVAL),
    "device": (lambda _: "/dev/null", errno.EINVAL),
    "loop": (_loop, errno.ELOOP),
    "missing folder": (lambda path: path / "ckpt", errno.ENOENT),
    "file as folder": (_in_file, errno.ENOTDIR),
    "trailing slash": (lambda path: f"{path}/", errno.EISDIR),
    "256 bytes": (lambda path: path.with_name("c" * 256), errno.ENAMETOOLONG),
    "255 characters": (lambda path: path.with_name("ü" * 255), errno.ENAMETOOLONG),
    "empty": (lambda _: "", errno.EINVAL),
    "null byte": (lambda path: f"{path}\0", errno.EINVAL),
    "lone surrogate": (lambda path: f"{path}\ud800", errno.EINVAL),
}


@pytest.mark.parametrize(("make", "number"), REFUSED.values(), ids=REFUSED)
def test_refused_at_the_call(tmp_path, make, number, open_writer):
    """A target that can never become a file is refused before anything is staged or written."""
    target = make(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SaveError) as raised:
        open_writer().save({"x": lambda: "never pickled"}, target)
    error = raised.value
    assert (error.phase, error.errno, error.outcome) == ("target", number, "not_committed")
    assert "untouched" in str(error)
    assert isinstance(error, OSError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno, again.path) == (str(error), error.errno, error.path)
    assert sorted(tmp_path.rglob("*")) == before


def test_remedies(tmp_path):
    """The message of a missing folder says what to do."""
    with pytest.raises(SaveError, match=r"cannot save '.*/no/ckpt': .*ENOENT.*Make the folder first"):
        resolve(str(tmp_path / "no" / "ckpt"))


def test_a_path_like_object(tmp_path, save):
    """Any ``os.PathLike`` of text will do."""

    class Elsewhere:
        def __fspath__(self):
            return str(tmp_path / "ckpt")

    assert save(STATE, Elsewhere()).path == str(tmp_path / "ckpt")


def test_read_only_mount(tmp_path, save):
    """A file system that is mounted read-only is refused at the call, with its number."""
    folder = tmp_path / "ro"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(SaveError, match="read-only") as raised:
            save(STATE, folder / "ckpt")
        assert raised.value.errno == errno.EROFS
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_without_permission(tmp_path, template: Template):
    """A folder that the user may not write to is refused at the call."""
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    done = template.run(
        """
        import os, sys
        import asyncsave
        from backends import writer_or_shared
        writer = writer_or_shared()
        folder = os.open(sys.argv[1], os.O_RDONLY)
        os.fchdir(folder)
        os.setgid(65534); os.setuid(65534)
        try:
            asyncsave.save_async({"n": 1}, f"/proc/self/fd/{folder}/ckpt", writer=writer)
        except asyncsave.SaveError as error:
            print(error.phase, error.errno)
        """,
        folder,
    )
    assert done.rc == 0, done.stderr
    assert done.stdout.split() == ["target", str(errno.EACCES)]
