"""One model's place in the cache of packed weights: found again bit for bit, never believed when it is not what was
written, never in the way. (Through the engine: `test_cached_weights.py`.)"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.inference.weight_files import flip, left_in, settle

from treadle.errors import InvalidRequest
from treadle.inference import weight_cache, weight_file
from treadle.inference.weight_cache import Place, SourceFile, WeightCache, limit_from
from treadle.inference.weight_file import DATA_START, Header, Stopped, Unusable

AS_ROOT = os.geteuid() == 0


def source_file(path: Path, content: bytes = b"model") -> SourceFile:
    path.write_bytes(content)
    settle()
    return SourceFile(path, path.stat())


def checksum(data) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def weights(seed: int, nbytes: int = 4096 * 3 + 64):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def place_of(cache: WeightCache, *files: SourceFile, packing: str = "packed") -> Place:
    return Place(cache, "tiny", files, packing, checksum)


def keep(cache: WeightCache, file: SourceFile, data, packing: str = "packed") -> Path:
    """Keeps `data` as packed from `file`; its path in the cache."""
    before = {entry.file for entry in cache.entries()}
    place = place_of(cache, file, packing=packing)
    place.keep(data)
    place.finish()
    (new,) = {entry.file for entry in cache.entries()} - before
    return new


@pytest.fixture
def cache(tmp_path) -> WeightCache:
    return WeightCache(tmp_path / "weights")


@pytest.fixture
def source(tmp_path) -> SourceFile:
    return source_file(tmp_path / "model.gguf")


def test_what_was_kept_is_mapped_read_only_and_aligned(cache, source):
    data = weights(0)
    assert place_of(cache, source).find(data.nbytes) is None
    keep(cache, source, data)
    found = place_of(cache, source).find(data.nbytes)
    np.testing.assert_array_equal(found, data)
    assert found.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_files_are_for_this_user_alone(cache, source):
    path = keep(cache, source, weights(0))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_another_packing_or_size_is_no_hit(cache, source, caplog):
    data = weights(0)
    keep(cache, source, data)
    assert place_of(cache, source, packing="packed otherwise").find(data.nbytes) is None
    assert not caplog.records  # another layout is no damage
    assert place_of(cache, source).find(data.nbytes + 64) is None
    assert "holds the weights of another model" in caplog.text


def test_the_same_content_is_kept_once(cache, source, tmp_path, caplog):
    """A model that was copied is packed once more, then its copy is known too."""
    data = weights(0)
    keep(cache, source, data)
    copy = source_file(tmp_path / "copy.gguf")
    assert place_of(cache, copy).find(data.nbytes) is None
    place = place_of(cache, copy)
    place.keep(data)
    place.finish()
    np.testing.assert_array_equal(place_of(cache, copy).find(data.nbytes), data)
    assert len(cache.entries()) == 1
    assert not caplog.records


def test_a_changed_source_of_equal_size_and_mtime_is_no_hit(cache, source):
    keep(cache, source, weights(0))
    source.path.write_bytes(b"other")  # as long as before
    os.utime(source.path, ns=(source.stat.st_atime_ns, source.stat.st_mtime_ns))
    changed = SourceFile(source.path, source.path.stat())
    assert changed.stat.st_size == source.stat.st_size and changed.stat.st_mtime_ns == source.stat.st_mtime_ns
    assert place_of(cache, changed).find(weights(0).nbytes) is None


def test_a_source_that_changes_while_it_is_packed_is_not_remembered(cache, source, caplog):
    place = place_of(cache, source)
    settle()
    source.path.write_bytes(b"later")
    place.keep(weights(0))
    place.finish()
    assert cache.entries() == []
    assert "changed meanwhile" in caplog.text


def test_a_source_younger_than_a_clock_tick_is_not_kept(cache, tmp_path, monkeypatch):
    path = tmp_path / "new.gguf"
    path.write_bytes(b"model")
    stat = path.stat()
    monkeypatch.setattr(weight_cache.time, "time_ns", lambda: stat.st_ctime_ns + 1_000_000)
    place = place_of(cache, SourceFile(path, stat))
    place.keep(weights(0))
    place.finish()
    assert cache.entries() == []


def test_every_shard_counts(cache, tmp_path):
    first, second = source_file(tmp_path / "a", b"a"), source_file(tmp_path / "b", b"b")
    data = weights(0)
    place = place_of(cache, first, second)
    place.keep(data)
    place.finish()
    np.testing.assert_array_equal(place_of(cache, first, second).find(data.nbytes), data)
    assert place_of(cache, first).find(data.nbytes) is None
    assert place_of(cache, first, source_file(tmp_path / "b", b"c")).find(data.nbytes) is None


# --- damage -------------------------------------------------------------------------------------------------------


def replace_header(path: Path, **changes) -> None:
    """A header that is whole, but says something else."""
    descriptor = weight_file.open_trusted(path)
    header = weight_file.read_header(descriptor)
    os.close(descriptor)
    values = {name: getattr(header, name) for name in Header.__struct_fields__}
    block = weight_file._encode(Header(**{**values, **changes}))
    path.write_bytes(block + path.read_bytes()[DATA_START:])


def older_form(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write((0).to_bytes(4, "little"))


def symlinked(path: Path) -> None:
    real = path.with_name("elsewhere")
    path.rename(real)
    path.symlink_to(real)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


DAMAGE = {
    "a flipped byte of the magic": (lambda path: flip(path, 3), "is no file of packed weights"),
    "a flipped byte of the length": (lambda path: flip(path, 13), "damaged header"),
    "a flipped byte of the header": (lambda path: flip(path, 60), "damaged header"),
    "a flipped byte of the header's hash": (lambda path: flip(path, 16 + len_of_body(path) + 5), "damaged header"),
    "the first byte of the data": (lambda path: flip(path, DATA_START), "damaged weights"),
    "the last byte of the data": (lambda path: flip(path, path.stat().st_size - 1), "damaged weights"),
    "cut by a byte": (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
    "cut inside the header": (lambda path: os.truncate(path, 100), "inside its header"),
    "empty": (lambda path: os.truncate(path, 0), "inside its header"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes instead of"),
    "an older form": (older_form, "has form 0"),
    "another model's": (lambda path: replace_header(path, content="0" * 64), "of another model"),
    "another packing's": (lambda path: replace_header(path, packing="0" * 64), "of another model"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "is no file of packed weights"),
    "writable by others": (lambda path: path.chmod(0o666), "may be written by others"),
    "a symbolic link": (symlinked, "is a symbolic link"),
    "a pipe": (fifo, "is no regular file"),
}


def len_of_body(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[12:16], "little")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_once_and_made_good(kind, cache, source, caplog):
    damage, reason = DAMAGE[kind]
    data = weights(0)
    path = keep(cache, source, data)
    damage(path)
    place = place_of(cache, source)
    assert place.find(data.nbytes) is None
    (record,) = caplog.records
    assert reason in record.getMessage() and str(path) in record.getMessage()
    assert record.name == "treadle" and record.levelno == logging.WARNING
    place.keep(data)
    place.finish()
    np.testing.assert_array_equal(place_of(cache, source).find(data.nbytes), data)
    assert len(caplog.records) == 1
    assert path.is_file() and not path.is_symlink()


@pytest.mark.skipif(not AS_ROOT, reason="gives a file to another user")
def test_a_file_of_another_user_is_not_believed(cache, source, caplog):
    data = weights(0)
    path = keep(cache, source, data)
    os.chown(path, 12345, 12345)
    assert place_of(cache, source).find(data.nbytes) is None
    assert "belongs to user 12345" in caplog.text


def test_every_flipped_byte_of_a_header_is_found(cache, source):
    path = keep(cache, source, weights(0, 64))
    whole = path.read_bytes()
    for offset in range(16 + len_of_body(path) + 32):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        descriptor = weight_file.open_trusted(path)
        with pytest.raises(Unusable):
            weight_file.read_header(descriptor)
        os.close(descriptor)


def test_a_header_that_is_whole_but_hostile(cache, source):
    path = keep(cache, source, weights(0, 64))
    for body in (b"[]", b"{}", b"\xff", b'{"data_bytes": -1}', b'{"data_bytes": 1e999}', b"[" * 3000):
        block = weight_file._PREFIX.pack(weight_file.MAGIC, weight_file.VERSION, len(body)) + body
        block += hashlib.sha256(block).digest()
        path.write_bytes(block.ljust(DATA_START + 64, b"\0"))
        descriptor = weight_file.open_trusted(path)
        with pytest.raises(Unusable):
            weight_file.read_header(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff" * 9])
def test_a_damaged_index_is_noticed_and_made_anew(content, cache, source, caplog):
    data = weights(0)
    keep(cache, source, data)
    (cache.directory / "sources.json").write_bytes(content)
    place = place_of(cache, source)
    assert place.find(data.nbytes) is None
    assert "sources.json is damaged" in caplog.text
    place.keep(data)
    place.finish()
    np.testing.assert_array_equal(place_of(cache, source).find(data.nbytes), data)
    assert len(caplog.records) == 1


def test_the_index_does_not_grow_for_ever(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_cache, "MAX_SOURCES", 3)
    cache.directory.mkdir()
    for number in range(5):
        cache.remember(f"source {number}", "content")
    kept = json.loads((cache.directory / "sources.json").read_bytes())
    assert set(kept) == {"source 2", "source 3", "source 4"}


def test_texts_of_any_kind_fit_the_header(cache, tmp_path):
    directory = tmp_path
    for name in ("\u4e2d" * 80, "\x01" * 250, '"' * 250, "\\" * 250):
        directory = directory / name
    directory.mkdir(parents=True)
    keep(cache, source_file(directory / "m.gguf"), weights(0))
    (entry,) = cache.entries()
    assert not entry.problem


# --- size, eviction, trouble with the disk ------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    size = weights(0).nbytes + DATA_START
    cache = WeightCache(tmp_path / "weights", limit=3 * size)
    sources = [source_file(tmp_path / f"{n}.gguf", str(n).encode()) for n in range(4)]
    paths = [keep(cache, sources[n], weights(n)) for n in range(3)]
    for age, path in zip((30, 20, 10), paths, strict=True):
        os.utime(path, (time.time() - age, time.time() - age))
    mapped = place_of(cache, sources[0]).find(weights(0).nbytes)  # used now
    keep(cache, sources[3], weights(3))
    assert [path.exists() for path in paths] == [True, False, True]
    os.utime(paths[0], (0, 0))
    keep(cache, source_file(tmp_path / "4.gguf", b"4"), weights(4))
    assert not paths[0].exists()
    np.testing.assert_array_equal(mapped, weights(0))  # deleted, and still mapped
    assert sum(entry.nbytes for entry in cache.entries()) <= 3 * size


def test_what_exceeds_the_limit_is_not_kept(tmp_path, source, caplog):
    cache = WeightCache(tmp_path / "weights", limit=1000)
    place = place_of(cache, source)
    place.keep(weights(0))
    place.finish()
    assert cache.entries() == []
    assert "the limit is 1000 (TREADLE_CACHE_LIMIT sets it)" in caplog.text


def test_the_default_limit_leaves_half_of_the_free_disk(cache, monkeypatch):
    class Disk:
        f_bavail, f_frsize = 1000, 4096

    monkeypatch.setattr(weight_cache.os, "statvfs", lambda path: Disk)
    assert cache.limit_bytes() == 1000 * 4096 // 2
    Disk.f_bavail = 1 << 40
    assert cache.limit_bytes() == 20 << 30


def test_limits_that_people_write():
    assert [limit_from(text) for text in ("0", "20GB", "1.5 mb", "7k", "12")] == [0, 20 * 10**9, 1500000, 7000, 12]
    for text in ("", "-1", "20 GiBs", "nan", "1e9", "9" * 20):
        with pytest.raises(InvalidRequest, match="TREADLE_CACHE_LIMIT"):
            limit_from(text)


def test_a_file_that_may_not_grow_leaves_nothing(cache, source, caplog):
    """A full disk as far as write(2) is concerned: the size limit ends the file in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DATA_START + 100, hard))
    try:
        place = place_of(cache, source)
        place.keep(weights(0))
        place.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(cache.directory) == []
    (record,) = caplog.records
    assert os.strerror(errno.EFBIG) in record.getMessage() and "were not kept" in record.getMessage()


def test_a_full_disk_leaves_nothing(tmp_path, source, caplog):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a small disk")
    try:
        cache = WeightCache(mount / "weights", limit=1 << 30)
        place = place_of(cache, source)
        place.keep(weights(0, 256 << 10))
        place.finish()
        assert left_in(cache.directory) == []
        assert os.strerror(errno.ENOSPC) in caplog.text
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody may write, not even root")
def test_a_directory_that_cannot_be_written_only_loses_the_cache(source, caplog):
    cache = WeightCache(Path("/proc/self/weights"))
    place = place_of(cache, source)
    assert place.find(64) is None
    place.keep(weights(0))
    place.finish()
    (record,) = caplog.records
    assert "were not kept" in record.getMessage()


def test_hits_need_no_write_access(cache, source, monkeypatch):
    data = weights(0)
    path = keep(cache, source, data)

    def refused(*arguments, **options):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(weight_cache.os, "utime", refused)
    path.chmod(0o400)
    cache.directory.chmod(0o500)
    np.testing.assert_array_equal(place_of(cache, source).find(data.nbytes), data)
    cache.directory.chmod(0o700)


def test_abandoned_temporary_files_go_and_live_ones_stay(cache, source):
    cache.directory.mkdir()
    dead = cache.directory / ".x.weights.0123.tmp"
    dead.write_bytes(b"half")
    dead.chmod(0o600)
    release = threading.Event()
    header = Header("p", "c", "m", "path", 64, 0)

    class Slow(threading.Event):
        """Asked before every chunk: holds the writer there."""

        def is_set(self) -> bool:
            release.wait(30)
            return True

    path = cache.directory / "live.weights"

    def written() -> None:
        with pytest.raises(Stopped):
            weight_file.write(path, header, weights(0, 64), Slow())

    writer = threading.Thread(target=written)
    writer.start()
    while len(left_in(cache.directory)) < 2:
        time.sleep(0.001)
    settle()
    keep(cache, source, weights(0))
    live = [name for name in left_in(cache.directory) if name.endswith(".tmp")]
    assert len(live) == 1 and live[0].startswith(".live.")
    release.set()
    writer.join()
    assert not [name for name in left_in(cache.directory) if name.endswith(".tmp")]


def test_abandoning_leaves_nothing(cache, source):
    place = place_of(cache, source)
    place._stop.set()
    place.keep(weights(0))
    place.finish(abandon=True)
    assert left_in(cache.directory) == []


def test_clear_deletes_what_is_the_caches_own(cache, source):
    data = weights(0)
    path = keep(cache, source, data)
    stranger = cache.directory / "notes.txt"
    stranger.write_text("mine")
    mapped = place_of(cache, source).find(data.nbytes)
    assert [entry.file for entry in cache.clear()] == [path]
    assert left_in(cache.directory) == ["notes.txt"]
    np.testing.assert_array_equal(mapped, data)
    assert cache.clear() == []


def test_unusable_files_are_listed_with_the_reason(cache, source):
    path = keep(cache, source, weights(0))
    flip(path, 60)
    (entry,) = cache.entries()
    assert entry.problem == "has a damaged header" and entry.nbytes == path.stat().st_size
