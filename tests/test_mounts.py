"""Whether a file system can keep the promise of durability."""

from __future__ import annotations

import pytest

from asyncsave.storage.mounts import is_durable

TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /run rw - tmpfs none rw,size=1g
24 22 0:22 / /run/disk rw shared:3 - xfs /dev/vdb rw
25 22 0:23 / /merged rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
26 22 0:24 / /volatile rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile
27 22 0:25 / /user rw - fuse.sshfs host: rw
28 22 0:26 / /block rw - fuseblk /dev/vdc rw
29 22 0:27 / /a\\040b rw - tmpfs none rw
30 22 0:28 / /twice rw - tmpfs none rw
31 30 0:29 / /twice rw - ext4 /dev/vdd rw
32 22 0:30 / /nfs rw - nfs4 host:/ rw
"""


@pytest.mark.parametrize(
    ("folder", "durable"),
    [
        ("/", True),
        ("/home/me", True),
        ("/run", False),
        ("/run/user", False),
        ("/running", True),
        ("/run/disk", True),
        ("/run/disk/deep/er", True),
        ("/merged/x", True),
        ("/volatile/x", False),
        ("/user/x", False),
        ("/block/x", False),
        ("/a b/c", False),
        ("/a", True),
        ("/twice/x", True),
        ("/nfs", True),
    ],
)
def test_is_durable(tmp_path, folder, durable):
    """The mount that a folder lies in decides: the longest one, and of two the later."""
    (tmp_path / "mountinfo").write_text(TABLE)
    assert is_durable(folder, mountinfo=str(tmp_path / "mountinfo")) is durable


def test_without_a_table(tmp_path):
    """Where the system does not say, the sync is believed."""
    assert is_durable("/", mountinfo=str(tmp_path / "none"))


def test_this_machine(tmp_path):
    """The kernel's own table is understood."""
    assert is_durable(str(tmp_path)) in {True, False}
    assert not is_durable("/dev/shm") or not is_durable("/dev")  # noqa: S108 - a tmpfs on every Linux
