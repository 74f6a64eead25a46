"""What a writer process has to say: to its trainer while that listens, to a file after."""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import threading

import pytest
from gates import Gated

from asyncsave import descriptors
from asyncsave.channel import Channel
from asyncsave.reporter import Reporter
from asyncsave.storage.system import System
from asyncsave.wire import LONGEST, Done, Failed, Log, Progress, Ready

PATIENCE = 30.0
DONE = Done(1, "crc32:00000000", durable=True, seal=0.0, write=0.0, sync=0.0, total=0.0)
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Talk:
    """A reporter, the trainer's end, and a file for what nobody hears."""

    def __init__(self, path, system=None):
        with descriptors.held_back():
            ours, theirs = socket.socketpair()
            self.trainer, self.channel = Channel(ours.detach()), Channel(theirs.detach())
        self.path = path
        self.reporter = Reporter(self.channel, system or System())
        self._said = False

    def hear(self, count):
        """Return the next messages."""
        return [self.trainer.receive()[0] for _ in range(count)]

    def end(self):
        """Let all be said, once."""
        if not self._said:
            self._said = True
            self.reporter.close()

    def lines(self):
        """Return what lies in the file, when all is said."""
        self.end()
        return self.path.read_text(encoding="utf-8").splitlines()

    def close(self):
        """End."""
        self.trainer.close()
        self.end()
        self.channel.close()


@pytest.fixture
def talk(tmp_path):
    """Return a talk with a file to be written to."""
    made = Talk(tmp_path / "writer.log")
    made.reporter.log_to(str(made.path))
    yield made
    made.close()


def test_a_trainer_that_lives_hears_all(talk):
    """Messages arrive in order; nothing is written to a file."""
    talk.reporter.say(Ready(7))
    talk.reporter.log(logging.WARNING, "a line")
    talk.reporter.say(Progress(1, 5))
    talk.reporter.say(DONE, "saved")
    assert talk.hear(4) == [Ready(7), Log(logging.WARNING, "a line"), Progress(1, 5), DONE]
    talk.end()
    assert not talk.path.exists()


def test_close_says_all_first(talk):
    """What was said before the end is heard, though the thread is ended."""
    for number in range(100):
        talk.reporter.say(Progress(number, 1))
    talk.end()
    assert talk.hear(100) == [Progress(number, 1) for number in range(100)]


def test_a_dead_trainer_is_written_to(talk):
    """Every event that has a line leaves one, with its time: also those that he may have left unread."""
    talk.reporter.say(Ready(7), "before")
    assert talk.hear(1) == [Ready(7)]
    talk.trainer.close()
    talk.reporter.say(Progress(1, 5))
    talk.reporter.say(DONE, "saved /data/ckpt.pt: 5 bytes, crc32:00000000")
    talk.reporter.log(logging.ERROR, "a line for the log")
    lines = talk.lines()
    assert re.fullmatch(STAMP + "before", lines[0])
    assert re.fullmatch(STAMP + r"saved /data/ckpt\.pt: 5 bytes, crc32:00000000", lines[1])
    assert re.fullmatch(STAMP + "a line for the log", lines[2])
    assert len(lines) == 3


def test_a_trainer_that_dies_with_the_last_word_unread(talk):
    """Nothing more is said after that; the file tells all the same."""
    talk.reporter.say(DONE, "saved /data/ckpt.pt")
    talk.hear(1)
    talk.trainer.close()
    assert [line.endswith("saved /data/ckpt.pt") for line in talk.lines()] == [True]


def test_the_file_is_private(talk):
    """It can be read by its owner alone, whatever the umask is."""
    before = os.umask(0)
    try:
        talk.trainer.close()
        talk.reporter.log(logging.INFO, "a line")
        talk.end()
    finally:
        os.umask(before)
    assert stat.S_IMODE(talk.path.stat().st_mode) == 0o600


def test_nothing_is_written_where_there_is_nothing_to_say(talk):
    """No empty files are left behind by trainings that ended well."""
    talk.trainer.close()
    talk.reporter.say(Progress(1, 5))
    talk.end()
    assert not talk.path.exists()


def test_nothing_is_written_without_a_name(tmp_path):
    """A process whose trainer never said where to has nowhere to write to."""
    talk = Talk(tmp_path / "writer.log")
    talk.trainer.close()
    talk.reporter.log(logging.ERROR, "a line")
    talk.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["a file", "a link", "a dangling link", "a folder", "a pipe", "no folder"])
def test_what_lies_in_the_way(talk, tmp_path, what):
    """The file is new, or there is none: nothing that lies there is written to, and no link is followed."""
    other = tmp_path / "other"
    other.write_bytes(b"somebody's")
    if what == "a file":
        talk.path.write_bytes(b"somebody's")
    elif what == "a link":
        talk.path.symlink_to(other)
    elif what == "a dangling link":
        talk.path.symlink_to(tmp_path / "nothing")
    elif what == "a folder":
        talk.path.mkdir()
    elif what == "a pipe":
        os.mkfifo(talk.path)
    else:
        talk.reporter.log_to(str(tmp_path / "missing" / "writer.log"))
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    talk.trainer.close()
    talk.reporter.log(logging.ERROR, "a line")
    talk.reporter.log(logging.ERROR, "another")
    talk.end()
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before
    assert other.read_bytes() == b"somebody's"


@pytest.mark.parametrize("name", ["/dev/full/none", "nul\0.log", "\ud800.log", "x" * 5000])
def test_a_name_that_no_file_can_have(tmp_path, name):
    """A log that cannot be written costs the log, and nothing else: the process goes on speaking."""
    gate = Gated("open")
    talk = Talk(tmp_path / "writer.log", gate)
    talk.trainer.close()
    talk.reporter.log_to(name)
    talk.reporter.log(logging.ERROR, "lost")
    gate.arrival()
    talk.reporter.log_to(str(talk.path))
    gate.release()
    talk.reporter.log(logging.ERROR, "found")
    talk.close()
    assert talk.path.exists(), "the thread that speaks has died"
    assert re.fullmatch(STAMP + "found\n", talk.path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    ["two\nlines", "carriage\r\nreturns", "\n\n", "ü-€ 名 😀", "a path of any bytes: /tmp/\udcff\udc80"],
)
def test_one_line_for_each_event(talk, text):
    """Whatever a text holds (a path may hold anything), an event is one line that begins with its time."""
    talk.trainer.close()
    talk.reporter.log(logging.ERROR, text)
    talk.reporter.log(logging.ERROR, "next")
    lines = talk.lines()
    assert len(lines) == 2
    assert all(re.match(STAMP, line) for line in lines)


def test_a_long_text_is_cut_for_the_trainer_only(talk):
    """The message has bounds, the file has none."""
    talk.reporter.log(logging.ERROR, "x" * 100_000)
    ((level, text),) = talk.hear(1)
    assert level == logging.ERROR
    assert text.endswith(" ...")
    assert len(text) < LONGEST
    talk.trainer.close()
    talk.reporter.log(logging.ERROR, "x" * 100_000)
    assert len(talk.lines()[0]) > 100_000


def test_the_speaker_never_waits(talk):
    """Much more is said than the socket holds while nobody listens; all of it is heard once somebody does."""
    count = 5000
    for number in range(count):
        talk.reporter.say(Progress(number, 1))
    assert talk.hear(count) == [Progress(number, 1) for number in range(count)]


def test_a_trainer_that_dies_with_much_unheard(talk):
    """What waits for a trainer that has stopped listening is written when it dies."""
    count = 5000
    for number in range(count):
        talk.reporter.say(Progress(number, 1), f"line {number}")
    talk.hear(1)  # it is being said
    talk.trainer.close()
    lines = talk.lines()
    assert lines
    first = int(lines[0].split()[-1])
    assert [int(line.split()[-1]) for line in lines] == list(range(first, count)), "in order, none left out"


def test_the_speaker_does_not_wait_for_the_disk(tmp_path):
    """A log on a disk that hangs holds up nobody but the log."""
    gate = Gated("open")
    talk = Talk(tmp_path / "writer.log", gate)
    talk.reporter.log_to(str(talk.path))
    talk.trainer.close()
    for number in range(10):
        talk.reporter.log(logging.ERROR, f"line {number}")
    gate.arrival()
    talk.reporter.log(logging.ERROR, "line 10")
    gate.release()
    assert len(talk.lines()) == 11
    talk.close()


@pytest.mark.parametrize(
    "message",
    [
        Failed(1, "m" * LONGEST + "m", "write", 28, "not_committed"),
        Log(logging.ERROR, "\ud800"),
        Progress(1 << 63, 0),
    ],
    ids=["too long", "no text", "too large"],
)
def test_what_cannot_be_said_silences_nobody(talk, message):
    """A message that has no form is lost, and only that one."""
    talk.reporter.say(message, "it")
    talk.reporter.say(Ready(7))
    heard = threading.Event()

    def listen():
        while (received := talk.trainer.receive()) is not None:
            if received[0] == Ready(7):
                heard.set()

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    talk.end()
    talk.channel.hang_up()
    listening.join(PATIENCE)
    assert heard.is_set()


def test_close_lets_go_of_the_file(talk):
    """Nothing stays open (the fixture looks), and the thread has ended."""
    talk.trainer.close()
    talk.reporter.log(logging.ERROR, "a line")
    talk.end()
    assert not any(thread.name == "asyncsave-reporter" for thread in threading.enumerate())
