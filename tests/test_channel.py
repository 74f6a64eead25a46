"""The talk between two processes: messages, and descriptors that go along, through a real socket pair."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import tempfile
import threading

import pytest

from asyncsave import descriptors
from asyncsave.channel import MOST_DESCRIPTORS, Channel
from asyncsave.wire import HEADER, LONGEST, Begun, Failed, Log, Progress, ProtocolError, Ready, Save, Start, encode

PATIENCE = 30.0
SAVE = Save(1, 1 << 20, "/data/ckpt.pt", "/data", "ckpt.pt", sync=True, umask=-1, started=0.5, queued=0.75, after=0)


def channels():
    """Return both ends of a talk."""
    with descriptors.held_back():
        one, other = socket.socketpair()
        return Channel(one.detach()), Channel(other.detach())


@pytest.fixture
def pair():
    """Return two channels that are connected."""
    made = channels()
    yield made
    for one in made:
        one.close()


@pytest.fixture
def wired():
    """Return a channel, and the other end as a bare socket."""
    with descriptors.held_back():
        one, other = socket.socketpair()
        channel = Channel(one.detach())
    yield channel, other
    other.close()
    channel.close()


@pytest.fixture
def files():
    """Return what makes open files that are closed after the test."""
    with contextlib.ExitStack() as after:

        def make(count):
            return [after.enter_context(tempfile.TemporaryFile()).fileno() for _ in range(count)]

        yield make


def identity(fd):
    """Return what open file a descriptor is of."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def taken(received):
    """Return a message, and which files came with it; close them."""
    message, fds = received
    found = [identity(fd) for fd in fds]
    for fd in fds:
        os.close(fd)
    return message, found


def push(end, data, fds=()):
    """Send bytes and descriptors as any program could."""
    return end.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def test_both_ends_speak(pair):
    """What one says the other hears, both ways."""
    one, other = pair
    one.send(Start(7, 2, "/tmp/ü.log"))  # noqa: S108 - a name only
    other.send(Ready(8))
    assert other.receive() == (Start(7, 2, "/tmp/ü.log"), [])  # noqa: S108
    assert one.receive() == (Ready(8), [])


@pytest.mark.parametrize("after", [0, 1, 5, MOST_DESCRIPTORS - 3])
def test_descriptors_go_along(pair, files, after):
    """Duplicates of what was sent arrive, in order; the sender keeps its own."""
    one, other = pair
    sent = files(3 + after)
    message = SAVE._replace(after=after)
    one.send(message, sent)
    received = other.receive()
    assert not set(received[1]) & set(sent)
    assert not any(os.get_inheritable(fd) for fd in received[1]), "what is started meanwhile does not get them"
    assert taken(received) == (message, [identity(fd) for fd in sent])


def test_several_at_once(pair, files):
    """Messages that lie in the socket together are told apart, each with its own descriptors."""
    one, other = pair
    expected = []
    for number in range(30):
        sent = files(3)
        message = SAVE._replace(number=number, path="x" * 100 * number)
        one.send(message, sent)
        one.send(Progress(number, 1))
        expected += [(message, [identity(fd) for fd in sent]), (Progress(number, 1), [])]
    assert [taken(other.receive()) for _ in expected] == expected


@pytest.mark.parametrize("on_byte", [[0, 0, 0], [0, 1, 2], [3, 8, 50], [-1, -1, -1]])
def test_one_byte_at_a_time(wired, files, on_byte):
    """However the bytes arrive, and with whichever of them the descriptors."""
    channel, end = wired
    data, sent = encode(SAVE), files(3)
    places = [place % len(data) for place in on_byte]

    def dribble():
        for at in range(len(data)):
            push(end, data[at : at + 1], [fd for fd, place in zip(sent, places, strict=True) if place == at])

    sending = threading.Thread(target=dribble)
    sending.start()
    received = channel.receive()
    sending.join(PATIENCE)
    assert taken(received) == (SAVE, [identity(fd) for fd in sent])


def test_the_end_at_every_byte(files):
    """A sender that dies in the middle of a message has said nothing, and its descriptors are let go."""
    data, sent = encode(SAVE), files(3)
    for cut in range(len(data)):
        one, other = socket.socketpair()
        with descriptors.held_back():
            channel = Channel(one.detach())
        if cut:
            push(other, data[:cut], sent)
        other.close()
        assert channel.receive() is None, cut
        assert channel.receive() is None, "it stays so"
        channel.close()


def test_an_end_that_was_not_listened_to(pair):
    """An end that is closed with something unread resets the connection: that is an end like any other."""
    one, other = pair
    one.send(Ready(1))
    other.close()
    assert one.receive() is None


@pytest.mark.parametrize("number", [0, 1, 2, 4, 6, MOST_DESCRIPTORS, MOST_DESCRIPTORS + 1, 253])
def test_a_wrong_number_of_descriptors_with_a_save(wired, files, number):
    """Too few, too many, more than there is room for: refused, and none is kept."""
    channel, end = wired
    push(end, encode(SAVE), files(number))
    with pytest.raises(ProtocolError, match="descriptors"):
        channel.receive()


@pytest.mark.parametrize(("after", "number"), [(1, 3), (1, 5), (2, 3), (1 << 62, 3), (-1, 2)])
def test_as_many_descriptors_as_the_message_says(wired, files, after, number):
    """The message says how many saves it comes after; other numbers of descriptors are refused."""
    channel, end = wired
    push(end, encode(SAVE._replace(after=after)), files(number))
    with pytest.raises(ProtocolError):
        channel.receive()


@pytest.mark.parametrize("message", [Start(1, 2, ""), Ready(1), Begun(1, 0.5), Log(30, "x")])
@pytest.mark.parametrize("number", [1, 3, 200])
def test_descriptors_with_a_message_that_takes_none(wired, files, message, number):
    """Only saves take descriptors along."""
    channel, end = wired
    push(end, encode(message), files(number))
    with pytest.raises(ProtocolError, match="descriptors"):
        channel.receive()


def test_a_receiver_without_a_free_descriptor(wired, files):
    """At its limit of open files a process gets fewer than were sent: it says so, and keeps none."""
    channel, end = wired
    push(end, encode(SAVE), files(3))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
    try:
        with pytest.raises(ProtocolError, match="descriptors"):
            channel.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(b"AS", 2, 2, 8) + bytes(8),
        HEADER.pack(b"AS", 1, 99, 8) + bytes(8),
        HEADER.pack(b"AS", 1, 2, LONGEST + 1),
        HEADER.pack(b"AS", 1, 2, 9) + bytes(9),
        HEADER.pack(b"AS", 1, 2, 0),
    ],
)
def test_what_is_no_message(wired, files, data):
    """It is refused as soon as that is seen, and what came with it is let go."""
    channel, end = wired
    push(end, data, files(3))
    with pytest.raises(ProtocolError):
        channel.receive()


def test_a_message_larger_than_the_socket(pair, files):
    """The longest message goes through a socket that holds a tenth of it."""
    one, other = pair
    for end in pair:
        end._end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = files(3)
    message = SAVE._replace(path="p" * (LONGEST - 200))
    sending = threading.Thread(target=one.send, args=(message, sent))
    sending.start()
    received = other.receive()
    sending.join(PATIENCE)
    assert taken(received) == (message, [identity(fd) for fd in sent])


def test_threads_do_not_mix_their_messages(pair):
    """Messages of up to 32 KiB go into the socket whole, though it is full all the time."""
    one, other = pair
    count, senders = 60, 4
    room = (32 << 10) - len(encode(Log(0, "")))

    def speak(number):
        for turn in range(count):
            one.send(Log(number, str(number) * (room if turn % 3 else 10 * turn)))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    turns = [0] * senders
    for _ in range(count * senders):
        (number, text), _ = other.receive()
        assert text == str(number) * (room if turns[number] % 3 else 10 * turns[number])
        turns[number] += 1
    for thread in threads:
        thread.join(PATIENCE)


def test_nobody_listens(pair, files):
    """To speak to an end that is gone is an OSError, and no signal."""
    one, other = pair
    other.close()
    with pytest.raises(OSError, match="pipe"):
        one.send(SAVE, files(3))


def test_too_long_to_be_said(pair):
    """A message that is too long is refused before anything of it is sent."""
    one, other = pair
    with pytest.raises(ProtocolError, match="longer than"):
        one.send(Log(0, "x" * LONGEST))
    one.send(Ready(1))
    assert other.receive() == (Ready(1), [])


def test_hang_up(pair):
    """Who has hung up is not heard any more, but hears."""
    one, other = pair
    one.send(Ready(1))
    one.hang_up()
    one.hang_up()
    assert other.receive() == (Ready(1), [])
    assert other.receive() is None
    other.send(Failed(1, "m", "write", 28, "not_committed"))
    assert one.receive() == (Failed(1, "m", "write", 28, "not_committed"), [])
    with pytest.raises(OSError, match="pipe"):
        one.send(Ready(2))


def test_hang_up_where_nobody_is(pair):
    """It is no error that the other end is gone, or this one closed."""
    one, other = pair
    other.close()
    one.hang_up()
    one.close()
    one.hang_up()


def test_close_is_idempotent(pair):
    """The descriptor is closed once; what has its number later is not touched."""
    one, other = pair
    fd = one.fileno()
    assert fd >= 0
    one.close()
    assert one.fileno() == -1
    with open(os.devnull, "rb") as stranger:  # noqa: PTH123 - by its descriptor
        assert stranger.fileno() == fd
        one.close()
        os.fstat(fd)
    assert other.receive() is None


def test_what_is_no_socket():
    """A descriptor of something else is refused."""
    reading, writing = os.pipe()
    with pytest.raises(OSError, match=r"[Ss]ocket"):
        Channel(reading)
    descriptors.drop(reading)
    os.close(writing)


def test_a_programs_default_timeout_is_not_ours():
    """A training that gives its downloads a timeout (socket.setdefaulttimeout) does not give one to this."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        one, other = channels()
    finally:
        socket.setdefaulttimeout(before)
    late = threading.Timer(0.1, one.send, args=(Ready(1),))
    late.start()
    try:
        assert other.receive() == (Ready(1), [])
    finally:
        late.join(PATIENCE)
        one.close()
        other.close()
