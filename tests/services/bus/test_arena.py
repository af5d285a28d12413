"""Arenas: tensors by reference, slots that come back, and references that must not be followed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bus import Bus, MessageError, arena
from services.bus.arena import Arena, ArenaFull, Reader
from services.bus.messages import Ref, Tensor

ROOT = Path(__file__).resolve().parents[3]
DTYPES = ["int8", "uint8", "int32", "int64", "float32"]


def array_of(seed: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, nbytes, np.int8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5, 2, 4), (0, 3), ()])
def test_an_array_comes_out_as_it_went_in(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    sender, reader = Arena(tmp_path, "r2f-a", 1 << 20), Reader(tmp_path, "reader")
    array = np.random.default_rng(0).integers(0, 100, (*shape, 2)).astype(dtype)[..., 0]  # not contiguous
    tensor = sender.put(array)
    seen = reader.open(tensor)
    np.testing.assert_array_equal(seen, array)
    assert (seen.dtype, seen.shape, seen.flags.writeable) == (array.dtype, array.shape, False)
    with pytest.raises(ValueError, match="read-only"):
        seen[...] = 0
    assert reader.release(tensor)
    sender.close()
    assert list(tmp_path.iterdir()) == []


def test_a_slot_is_used_again_only_when_all_expected_readers_released_it(tmp_path: Path) -> None:
    sender = Arena(tmp_path, "r2f-a", 8192)
    one, two, tap = (Reader(tmp_path, name) for name in ("voter", "codec", "tap"))
    tensor = sender.put(array_of(1, 8192), readers=2)
    for reader in (one, two, tap):
        np.testing.assert_array_equal(reader.open(tensor), array_of(1, 8192))
    with pytest.raises(ArenaFull):
        sender.put(array_of(2, 1))
    assert one.release(tensor)
    assert one.release(tensor)  # twice is once
    with pytest.raises(ArenaFull):
        sender.put(array_of(2, 1))
    np.testing.assert_array_equal(two.open(tensor), array_of(1, 8192))
    assert two.release(tensor)
    again = sender.put(array_of(2, 8192))
    assert again.ref is not None
    assert tensor.ref is not None
    assert again.ref.offset == tensor.ref.offset
    with pytest.raises(MessageError, match="another tensor"):
        tap.open(tensor)
    assert not tap.release(tensor)
    np.testing.assert_array_equal(tap.open(again), array_of(2, 8192))


def test_a_dead_reader_is_outlived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("services.bus.arena.time.monotonic", lambda: now)
    sender, reader = Arena(tmp_path, "r2f-a", 4096, age_limit_s=30), Reader(tmp_path, "reader")
    tensor = sender.put(array_of(1, 100))
    reader.open(tensor)
    now = 129.0
    with pytest.raises(ArenaFull):
        sender.put(array_of(2, 100))
    now = 131.0
    sender.put(array_of(2, 100))
    assert not reader.release(tensor), "the reader must learn that what it looked at may have changed"


def test_room_is_merged_again(tmp_path: Path) -> None:
    sender, reader = Arena(tmp_path, "r2f-a", 64 << 10), Reader(tmp_path, "reader")
    tensors = [sender.put(array_of(i, 4096)) for i in range(16)]
    for i in (3, 1, 2, 0, 15, 8, 9, 10, 11, 12, 13, 14, 4, 6, 5, 7):
        reader.release(tensors[i])
    whole = sender.put(array_of(99, 64 << 10))
    np.testing.assert_array_equal(reader.open(whole), array_of(99, 64 << 10))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 5)), max_size=60))
def test_no_two_live_tensors_overlap(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]) -> None:
    where = tmp_path_factory.mktemp("arena")
    sender, reader = Arena(where, "r2f-a", 100_000), Reader(where, "reader")
    live: list[tuple[int, Tensor]] = []
    for i, (nbytes, release) in enumerate(steps):
        try:
            live.append((i, sender.put(array_of(i, nbytes))))
        except ArenaFull:
            assert live
        for _ in range(min(release, len(live))):
            seed, tensor = live.pop(i % len(live))
            assert tensor.ref is not None
            np.testing.assert_array_equal(reader.open(tensor), array_of(seed, tensor.ref.nbytes))
            assert reader.release(tensor)
    for seed, tensor in live:
        assert tensor.ref is not None
        np.testing.assert_array_equal(reader.open(tensor), array_of(seed, tensor.ref.nbytes))
    sender.close()


def test_slots_run_out_before_room_does(tmp_path: Path) -> None:
    sender = Arena(tmp_path, "r2f-a", 16 << 20)
    for _ in range(arena.SLOTS):
        sender.put(array_of(0, 1))
    with pytest.raises(ArenaFull):
        sender.put(array_of(0, 1))
    sender.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 3 * 4096), max_size=8),
    st.lists(st.integers(0, 7), max_size=6),
    st.lists(st.integers(1, 3 * 4096), max_size=5),
)
def test_what_fits_can_be_put(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], gone: list[int], then: list[int]
) -> None:
    """``fits`` is just what putting one after another comes to, holes and all."""
    where = tmp_path_factory.mktemp("shm")
    sender, reader = Arena(where, "r2f-a", 10 * 4096), Reader(where, "reader")
    live = []
    for size in first:
        if sender.fits([size]):
            live.append(sender.put(array_of(0, size)))
    for i in gone:
        if i < len(live):
            reader.release(live[i])
    sender.collect()
    promised = sender.fits(then)
    try:
        for size in then:
            sender.put(array_of(1, size))
        done = True
    except ArenaFull:
        done = False
    sender.close()
    assert promised == done


def test_all_slots_taken_back(tmp_path: Path) -> None:
    sender, reader = Arena(tmp_path, "r2f-a", 8 * 4096), Reader(tmp_path, "reader")
    tensors = [sender.put(array_of(i, 4096), readers=2) for i in range(8)]
    assert not sender.fits([1])
    assert sender.withdraw_all() == 8
    assert sender.in_use == 0
    assert sender.fits([8 * 4096])
    for tensor in tensors:
        assert not reader.release(tensor)
        with pytest.raises(MessageError, match="another tensor"):
            reader.open(tensor)
    sender.close()


# -- references that must not be followed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "r2f-../x", "r2f-a/b", "", "r2f-", "x" * 64, "r2f-\x00", "r2f-link", "r2f-gone"]
)
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    inside = tmp_path / "shm"
    inside.mkdir()
    (inside / "r2f-link").symlink_to(tmp_path / "secret")
    ref = Ref(name, 0, 1, 69632, 4)
    with pytest.raises(MessageError):
        Reader(inside, "reader").open(Tensor(dtype="int8", shape=(4,), ref=ref))
    assert not Reader(inside, "reader").release(Tensor(dtype="int8", shape=(4,), ref=ref))


@pytest.mark.parametrize("content", [b"", bytes(4096), bytes(1 << 20)])
def test_a_file_that_is_no_arena_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r2f-a").write_bytes(content)
    with pytest.raises(MessageError, match="arena r2f-a"):
        Reader(tmp_path, "reader").open(Tensor(dtype="int8", shape=(4,), ref=Ref("r2f-a", 0, 1, 69632, 4)))


number = st.one_of(st.integers(0, 5), st.integers(0, 2**53), st.sampled_from([4096, 69632, 73728, 1023, 1022, 2**32]))


@settings(deadline=None)
@given(number, number, number, number)
def test_any_reference_is_a_live_tensor_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, slot: int, generation: int, offset: int, nbytes: int
) -> None:
    where = tmp_path_factory.mktemp("arena")
    sender, reader = Arena(where, "r2f-a", 1 << 20), Reader(where, "reader")
    live = [sender.put(array_of(i, 5000)) for i in range(3)]
    ref = Ref("r2f-a", slot, generation, offset, nbytes)
    tensor = Tensor(dtype="int8", shape=(nbytes,), ref=ref)
    try:
        seen = reader.open(tensor)
    except MessageError:
        assert ref not in [t.ref for t in live]
        assert not reader.release(tensor)
    else:
        assert ref in [t.ref for t in live]
        np.testing.assert_array_equal(seen, array_of([t.ref for t in live].index(ref), 5000))
    sender.close()


def test_a_reference_to_another_size_of_the_slot_is_refused(tmp_path: Path) -> None:
    sender, reader = Arena(tmp_path, "r2f-a", 1 << 20), Reader(tmp_path, "reader")
    tensor = sender.put(array_of(0, 5000))
    assert tensor.ref is not None
    for changed in ({"nbytes": 5001}, {"offset": tensor.ref.offset + 4096}):
        ref = msgspec.structs.replace(tensor.ref, **changed)
        with pytest.raises(MessageError):
            reader.open(Tensor(dtype="int8", shape=(ref.nbytes,), ref=ref))


def test_seats_are_kept_by_name_and_run_out(tmp_path: Path) -> None:
    sender = Arena(tmp_path, "r2f-a", 1 << 20)
    tensor = sender.put(array_of(0, 10), readers=3)
    for _ in range(arena.SEATS + 5):  # a service that restarts sits where it sat
        Reader(tmp_path, "voter").release(tensor)
    for i in range(arena.SEATS - 1):
        Reader(tmp_path, f"reader {i}").open(tensor)
    with pytest.raises(MessageError, match="seats"):
        Reader(tmp_path, "one more").open(tensor)
    sender.close()


# -- files of the dead ------------------------------------------------------------------------------------------------


def test_the_arenas_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom services.bus.arena import Arena\n"
        "arena = Arena(Path(sys.argv[1]), sys.argv[2], 1 << 20)\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    children = []
    for name in ("r2f-dead", "r2f-living"):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
    mine = Arena(tmp_path, "r2f-mine", 1 << 20)
    (tmp_path / "other").write_text("not ours")
    (tmp_path / "r2f-notes.txt").write_text("not ours, though it is called like it")
    children[0].send_signal(signal.SIGKILL)
    children[0].wait()
    assert arena.sweep(tmp_path) == ["r2f-dead"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "r2f-living", "r2f-mine", "r2f-notes.txt"]
    mine.close()
    children[1].kill()
    for child in children:
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_memory_is_taken_only_as_it_is_used(tmp_path: Path) -> None:
    sender = Arena(tmp_path, "r2f-a", 256 << 20)
    sender.put(array_of(0, 3 << 20))
    assert os.stat(tmp_path / "r2f-a").st_blocks * 512 < 8 << 20
    sender.close()


def test_full_shared_memory_is_an_error_and_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Arena(tmp_path, "r2f-a", 256 << 20)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("services.bus.arena.os.posix_fallocate", full)
    with pytest.raises(ArenaFull, match="No space left"):
        sender.put(array_of(0, 3 << 20))
    monkeypatch.undo()
    sender.put(array_of(0, 3 << 20))
    sender.close()


async def test_a_full_arena_sends_inline_and_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path))
    bus = Bus("mqtt://127.0.0.1:1", "agent", "d", arena_bytes=1 << 20)
    array = array_of(0, 600_000)
    first, second = bus.share(array), bus.share(array)
    assert (first.ref is None, second.ref is None) == (False, True)
    np.testing.assert_array_equal(bus.open(first), bus.open(second))
    assert bus.counts["arena_full"] == 1
    assert bus.release(first)
    assert bus.release(second)
    assert bus.share(array).ref is not None
    assert bus.share(array_of(0, 100)).ref is None, "small ones are cheaper inline"
    await bus._stop()


async def test_no_arenas_where_the_folder_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_SHM_DIR", "")
    bus = Bus("mqtt://127.0.0.1:1", "agent", "d")
    assert bus.share(array_of(0, 600_000)).ref is None
    with pytest.raises(MessageError, match="R2F_SHM_DIR"):
        bus.open(Tensor(dtype="int8", shape=(4,), ref=Ref("r2f-a", 0, 1, 69632, 4)))


def test_passing_a_tensor_costs_no_page_faults_once_warm(tmp_path: Path) -> None:
    import resource

    where = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    name = f"r2f-test-{os.getpid()}-{time.monotonic_ns()}"
    sender, reader = Arena(where, name, 64 << 20), Reader(where, "reader")
    array = array_of(0, 8 << 20)
    for i in range(12):
        if i == 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensor = sender.put(array)
        assert reader.open(tensor)[-1] == array[-1]
        reader.release(tensor)
        sender.collect()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    sender.close()
    assert faults < 8 * (8 << 20) // 4096 // 10
