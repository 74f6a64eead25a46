"""A writer of steps is killed before every single one of its calls; the next run tidies up.

Nothing is killed for real here: the system of a dead process does nothing any more, and its descriptors are closed.
"""

from __future__ import annotations

import contextlib
import errno
import logging

import pytest
from steps import ALONE, Killed, Mortal, assemble, clear, content, manifest_of, put_step, target_of, temporaries, whole

from asyncsave import Retention
from asyncsave.catalogue.brief import Brief
from asyncsave.catalogue.listing import Listing
from asyncsave.catalogue.names import MANIFEST, parse, step_name
from asyncsave.catalogue.upkeep import Upkeep, tidy
from asyncsave.storage.assembly import UNFINISHED, Assembly
from asyncsave.storage.blocks import write_all
from asyncsave.storage.spare import Spares
from asyncsave.storage.system import System

FILES = {"state.pt": b"state" * 100, "ema.pt": b"ema"}
OLD = {"state.pt": b"old" * 50, "gone.pt": b"old"}
NEW = {"state.pt": b"newer" * 100}


def steps_of(version):
    """Return the steps there are, every one of which is whole."""
    infos, problems = Listing(str(version)).look()
    assert not problems
    for info in infos:
        whole(version / step_name(info.step, complete=info.complete))
    return [info.step for info in infos]


def save(system, version):
    """Save step 2 anew, with a user's file in the old one, and drop step 1: all that a writer does for a step."""
    new = assemble(system, target_of(version, 2), NEW, time=99.0)
    brief = Brief(tuple(NEW), manifest_of(2), Retention(last=1))
    spares = Spares(system)
    upkeep, written = Upkeep(system, spares), str(version / step_name(2))
    with upkeep.after(brief, written, sync=True, recycle=True, replaced=new.replaced):
        pass
    spares.close()


@pytest.mark.parametrize("there", ["a step", "nothing", "the user's"])
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "aside"])
def test_a_death_at_every_call(tmp_path, caplog, exchanges, there):
    """Before whatever call the writer is killed: the next run finds one whole step, old or new, and nothing half."""
    caplog.set_level(logging.CRITICAL, "asyncsave")
    at, outcomes = 0, set()
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        (put_step(version, 1, FILES) / "notes.txt").write_bytes(b"of step 1")
        if there == "a step":
            (put_step(version, 2, OLD) / "notes.txt").write_bytes(b"mine")
        elif there == "the user's":
            (version / step_name(2)).mkdir()
            (version / step_name(2) / "notes.txt").write_bytes(b"mine")
        system = Mortal(at, exchanges=exchanges)
        with contextlib.suppress(Killed):
            save(system, version)
        system.bury()
        case = f"killed before {system.last}"
        tidy(System(), str(version))
        settled = content(version)
        assert set(steps_of(version)) <= {1, 2}, case
        found = whole(version / step_name(2)) if 2 in steps_of(version) else None
        assert found in ([OLD, NEW] if there == "a step" else [None, NEW]), case
        assert 1 in steps_of(version) or found == NEW, f"step 1 is gone too early: {case}"
        assert b"of step 1" in settled.values(), case
        assert there == "nothing" or b"mine" in settled.values(), f"the user's file is gone: {case}"
        assert there == "the user's" or not temporaries(version), f"left behind: {case}"
        for path in version.iterdir():
            if parse(path.name) is not None and (path / MANIFEST).exists():
                assert not {"gone.pt", UNFINISHED} & set(content(path)) or found == OLD, case
        tidy(System(), str(version))
        assert content(version) == settled, f"a second tidying had something to do: {case}"
        outcomes.add("new" if found == NEW else "old")
        clear(version)
        if not system.is_dead:
            break
    assert outcomes == {"old", "new"}
    assert at > 30


def test_a_death_while_it_clears_up(tmp_path):
    """A save that failed, and whose process is killed while it removes what it made, never becomes a step."""

    class Dying(Mortal):
        """Its rename fails; so many calls later it is killed."""

        def _call(self, name, *args, **kwargs):
            if name == "rename":
                self._left = at
                raise OSError(errno.EIO, "no rename")
            return super()._call(name, *args, **kwargs)

    at = 0
    while True:
        at += 1
        version = tmp_path / str(at)
        version.mkdir()
        system = Dying(1 << 30)
        with (
            contextlib.suppress(Killed, OSError),
            Assembly(system, target_of(version, 1), ALONE, sync=True) as new,
        ):
            manifest = manifest_of(1, FILES).to_json()
            for name, data in {**FILES, MANIFEST: manifest}.items():
                write_all(system, new.add(name, len(data)), memoryview(data), 0)
            new.commit()
        system.bury()
        tidy(System(), str(version))
        assert steps_of(version) in ([], [1]), f"killed before {system.last}"
        assert not temporaries(version), f"killed before {system.last}"
        if not system.is_dead:
            assert at > 5, "it was never killed"
            return
