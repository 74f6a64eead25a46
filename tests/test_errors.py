"""The errors: one root, the built-in that fits, and nothing lost on the way through a pickle."""

from __future__ import annotations

import copy
import errno
import pickle
import queue

import pytest

import asyncsave
from asyncsave import errors

EXAMPLES = [
    errors.AsyncSaveError("said"),
    errors.OptionError("said"),
    errors.StagingError("said"),
    errors.QueueFullError("said"),
    errors.WriterClosedError("said"),
    errors.WriterDiedError("said"),
    errors.SaveError("said", path="/a", phase="sync", errno=errno.EIO, outcome="durability_unknown"),
    errors.SaveError("said", path="/a", phase="target"),
    errors.SaveError.of(OSError(errno.ENOSPC, "No space left on device"), path="/a", phase="write"),
    errors.LoadError("said", path="/a"),
    errors.CheckpointNotFoundError("said", path="/a"),
    errors.CorruptCheckpointError("said", path="/a", record="data/0", expected="00", found="11"),
    errors.CorruptCheckpointError("said", path="/a"),
    errors.FormatVersionError("said", path="/a"),
]

BUILT_INS = {
    errors.OptionError: ValueError,
    errors.QueueFullError: queue.Full,
    errors.WriterClosedError: RuntimeError,
    errors.WriterDiedError: RuntimeError,
    errors.SaveError: OSError,
    errors.CheckpointNotFoundError: FileNotFoundError,
}


def described(error: BaseException) -> tuple[object, ...]:
    """Return all that a caller can see of an error."""
    return type(error), error.args, str(error), vars(error), getattr(error, "errno", None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error, protocol):
    """Class, message, attributes and errno, so that they can cross a process boundary."""
    assert described(pickle.loads(pickle.dumps(error, protocol))) == described(error)
    assert described(copy.copy(error)) == described(error)


def test_a_note_survives_pickling():
    """What was added on the way is an attribute like others."""
    error = errors.LoadError("said", path="/a")
    error.__notes__ = ["while resuming"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while resuming"]


def test_every_error_has_the_one_root():
    """Whoever catches AsyncSaveError has caught them all, and all are public."""
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.AsyncSaveError)
        assert getattr(asyncsave, name) is error


@pytest.mark.parametrize(("error", "built_in"), BUILT_INS.items(), ids=lambda one: one.__name__)
def test_errors_are_the_built_in_that_fits(error, built_in):
    """Code that was written around torch.save goes on catching what it caught."""
    assert issubclass(error, built_in)


def test_load_errors_are_a_family():
    """One except clause for everything that can be wrong with a checkpoint."""
    for error in (errors.CheckpointNotFoundError, errors.CorruptCheckpointError, errors.FormatVersionError):
        assert issubclass(error, errors.LoadError)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.ENOENT, "Make the folder"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "health"),
    ],
)
def test_a_save_error_says_path_phase_number_and_remedy(number, remedy):
    """All that is needed to act on it is in the message."""
    error = errors.SaveError.of(OSError(number, "reason"), path="/x/y.pt", phase="write")
    for word in ("'/x/y.pt'", "write failed", "reason", errno.errorcode[number], remedy, "untouched"):
        assert word in str(error)
    assert (error.path, error.phase, error.errno, error.outcome) == ("/x/y.pt", "write", number, "not_committed")


@pytest.mark.parametrize(("outcome", "words"), [("durability_unknown", "in place"), ("incomplete", "not a checkpoint")])
def test_a_save_error_says_untouched_only_where_it_is_so(outcome, words):
    """Where the new version is in place, or a file object holds a part of it, the message says that."""
    error = errors.SaveError.of(OSError(errno.EIO, "reason"), path="/x", phase="sync folder", outcome=outcome)
    assert error.outcome == outcome
    assert "untouched" not in str(error)
    assert words in str(error)


def test_a_save_error_without_a_number():
    """Errors that the operating system did not raise have none."""
    error = errors.SaveError.of(OSError("strange"), path="/x", phase="write")
    assert error.errno is None
    assert "strange" in str(error)
    assert "[" not in str(error)
