"""Memory is bounded: as many arenas as saves may be in flight, and no more bytes."""

from __future__ import annotations

import concurrent.futures
import re
import threading

import pytest
import torch
from gates import Gated

from asyncsave import QueueFullError, StagingError
from asyncsave import slots as slots_module
from asyncsave.slots import Slots
from asyncsave.workers import Workers

PATIENCE = 30.0
MIB = 1 << 20


def state(mib, number=0):
    """Return a state of so many MiB."""
    return {"number": number, "x": torch.full((mib * MIB // 4,), float(number))}


@pytest.fixture
def make_slots():
    """Make slots, with somebody to touch the pages of their arenas."""
    workers = Workers(2, "test")
    made = []

    def make(count, budget=None):
        made.append(Slots(count, budget, workers))
        return made[-1]

    yield make
    for slots in made:
        slots.close()
    workers.close()


@pytest.fixture
def machine(monkeypatch):
    """Let the test say how many bytes the machine has left."""
    left = [1 << 40]
    monkeypatch.setattr("asyncsave.slots.headroom", lambda: left[0])
    return left


def never():
    """Fail where nothing is to be waited for."""
    pytest.fail("waited")


def test_take_and_give_back(make_slots):
    """There are as many slots as there are, and the one with the largest arena is lent first."""
    slots = make_slots(2)
    first, second = slots.take(), slots.take()
    assert slots.take() is None
    assert slots.free == 0
    slots.equip(first, MIB, wait=never)
    slots.give_back(second)
    slots.give_back(first)
    assert slots.free == slots.count == 2
    assert slots.take() is first
    slots.give_back(first)


def test_an_arena_is_used_again(make_slots):
    """A state that fits stays in the arena; one that has grown gets a larger one."""
    slots = make_slots(1)
    slot = slots.take()
    arena = slots.equip(slot, MIB, wait=never)
    assert slots.equip(slot, MIB // 2, wait=never) is arena
    assert slots.equip(slot, MIB + MIB // 100, wait=never) is arena
    larger = slots.equip(slot, 3 * MIB, wait=never)
    assert larger is not arena
    assert slots.allocated == larger.capacity >= 3 * MIB
    slots.give_back(slot)


@pytest.mark.usefixtures("backend")
def test_more_than_the_budget(open_writer, tmp_path):
    """A state above the budget can never fit: both numbers are in the error, and the slot is free."""
    writer = open_writer(memory_budget=2 * MIB, max_pending=1)
    with pytest.raises(StagingError, match=r"needs 3,1\d\d,\d\d\d bytes of host memory, memory_budget is 2,097,152"):
        writer.save(state(3), tmp_path / "1")
    assert repr(writer).endswith("1/1 free>")
    assert not list(tmp_path.iterdir())
    assert writer.save(state(1), tmp_path / "1").result(PATIENCE).durable


@pytest.mark.usefixtures("backend")
def test_more_than_the_machine_has(open_writer, tmp_path, machine):
    """A state above what is left raises both numbers, before anything is allocated."""
    machine[0] = 5 * MIB
    writer = open_writer()
    with pytest.raises(StagingError, match=r"needs 6,\d\d\d,\d\d\d bytes.*5,242,880 are free") as raised:
        writer.save(state(6), tmp_path / "1")
    assert re.search("container", str(raised.value))
    assert writer._slots.allocated == 0
    machine[0] = 1 << 40
    assert writer.save(state(6), tmp_path / "1").result(PATIENCE).durable


@pytest.mark.usefixtures("backend")
def test_the_budget_waits_for_anothers_arena(open_writer, tmp_path):
    """Where the budget has room for one arena, the second save waits for the first to end."""
    gate = Gated("allocate")
    writer = open_writer(memory_budget=6 * MIB, max_pending=2, system=gate)
    first = writer.save(state(4, 1), tmp_path / "1")
    gate.arrival()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        second = pool.submit(writer.save, state(4, 2), tmp_path / "2")
        concurrent.futures.wait([second], 0.3)
        assert not second.done()
        assert not first.done()
        gate.release()
        assert second.result(PATIENCE).result(PATIENCE).durable
    assert torch.load(tmp_path / "1")["number"] == 1
    assert torch.load(tmp_path / "2")["number"] == 2
    assert writer._slots.allocated <= 6 * MIB


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("policy", ["skip", "raise", "replace"])
def test_the_policy_holds_for_memory_too(open_writer, tmp_path, policy):
    """A slot without memory for it is no slot: the policy says what to do, and the slot is free again."""
    gate = Gated("allocate")
    writer = open_writer(memory_budget=10 * MIB, max_pending=3, system=gate)
    writer.save(state(4, 1), tmp_path / "1")
    gate.arrival()
    queued = writer.save(state(4, 2), tmp_path / "2")
    if policy == "skip":
        assert writer.save(state(4, 3), tmp_path / "3", on_busy="skip").status == "skipped"
    elif policy == "raise":
        with pytest.raises(QueueFullError):
            writer.save(state(4, 3), tmp_path / "3", on_busy="raise")
    else:
        third = writer.save(state(4, 3), tmp_path / "3", on_busy="replace")
        assert queued.status == "replaced"
        assert repr(writer).endswith("1/3 free>")
        gate.release()
        assert third.result(PATIENCE).durable
        return
    assert repr(writer).endswith("1/3 free>")
    gate.release()
    assert queued.result(PATIENCE).durable


@pytest.mark.usefixtures("backend")
def test_idle_arenas_give_way(open_writer, tmp_path):
    """Memory that no save uses is given back before anything is refused."""
    writer = open_writer(memory_budget=10 * MIB, max_pending=2)
    writer.warmup(state(4))
    assert all(slot.arena for slot in writer._slots._all)
    assert writer.save(state(8), tmp_path / "1").result(PATIENCE).durable
    assert [slot.arena is None for slot in writer._slots._all].count(True) == 1


@pytest.mark.usefixtures("backend")
def test_growing_states(open_writer, tmp_path, machine):
    """A state that grows is followed by its arena; one that outgrows the machine is refused."""
    writer = open_writer(max_pending=1)
    for mib in (1, 2, 4, 8):
        machine[0] = mib * MIB + MIB // 2
        assert writer.save(state(mib), tmp_path / "1").result(PATIENCE).durable
    machine[0] = 9 * MIB
    with pytest.raises(StagingError):
        writer.save(state(16), tmp_path / "1")
    assert writer.save(state(1), tmp_path / "1").result(PATIENCE).durable


@pytest.mark.usefixtures("backend")
def test_memory_that_somebody_else_gives_back(open_writer, tmp_path, machine):
    """While another save is in flight, memory that becomes free outside is noticed too."""
    gate = Gated("allocate")
    writer = open_writer(max_pending=2, system=gate)
    writer.save(state(1), tmp_path / "1")
    gate.arrival()
    machine[0] = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        second = pool.submit(writer.save, state(2), tmp_path / "2")
        concurrent.futures.wait([second], 0.2)
        assert not second.done()
        machine[0] = 1 << 40
        handle = second.result(PATIENCE)
    gate.release()
    assert handle.result(PATIENCE).durable


@pytest.mark.usefixtures("backend")
def test_two_that_wait_for_memory_do_not_wait_for_each_other(open_writer, tmp_path, machine):
    """Where no arena is in use nothing can become free: both saves raise."""
    machine[0] = 100
    writer = open_writer(max_pending=2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for save in [pool.submit(writer.save, state(2), tmp_path / name) for name in "ab"]:
            with pytest.raises(StagingError):
                save.result(PATIENCE)
    assert repr(writer).endswith("2/2 free>")


@pytest.mark.usefixtures("backend")
def test_the_budget_is_kept(open_writer, tmp_path, backend):
    """A budget of two states holds two arenas: they have no room to grow then, but for the last page.

    For a writer process there is another page behind the image, which says where the records lie.
    """
    nbytes = open_writer().save(state(4), tmp_path / "1").result(PATIENCE).nbytes
    budget = 2 * (nbytes + 4096 * (1 if backend == "thread" else 2))
    writer = open_writer(memory_budget=budget, max_pending=2)
    writer.warmup(state(4))
    assert writer._slots.allocated <= budget + 2 * 4096
    assert all(slot.arena for slot in writer._slots._all), "there was room for two"


def test_a_save_that_ends_while_another_looks_for_memory(make_slots, machine):
    """An arena that becomes idle in the middle of a look is noticed: nothing is refused while it is there."""
    slots = make_slots(2)
    other, mine = slots.take(), slots.take()
    slots.equip(other, MIB, wait=never)
    machine[0] = 0
    look, ended = slots._room, []

    def look_while_the_other_ends():
        found = look()
        if not ended:
            ended.append(threading.Thread(target=slots.give_back, args=(other,)))
            ended[0].start()
            ended[0].join(PATIENCE)
            machine[0] = 1 << 40
        return found

    slots._room = look_while_the_other_ends
    assert slots.equip(mine, MIB, wait=never) is not None
    assert other.arena is None
    slots.give_back(mine)


def test_two_threads_do_not_share_a_budget_twice(monkeypatch):
    """What one thread is about to allocate is not there for another: the second waits, and nothing is exceeded."""
    workers = Workers(1, "test")
    slots = Slots(2, 3 * MIB, workers)
    first, second = slots.take(), slots.take()
    allocating, go = threading.Event(), threading.Event()
    real = slots_module.Arena

    def slow(*args, **kwargs):
        allocating.set()
        assert go.wait(PATIENCE)
        return real(*args, **kwargs)

    monkeypatch.setattr(slots_module, "Arena", slow)
    thread = threading.Thread(target=lambda: slots.equip(first, 2 * MIB, wait=never))
    thread.start()
    assert allocating.wait(PATIENCE)
    assert slots.equip(second, 2 * MIB, wait=lambda: False) is None
    go.set()
    thread.join(PATIENCE)
    assert slots.allocated <= 3 * MIB
    for slot in (first, second):
        slots.give_back(slot)
    slots.close()
    workers.close()
