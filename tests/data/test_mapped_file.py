"""One memory-mapped file of all sequences: what it gives, and when it is made again."""

import json
import os
import pickle

import numpy as np
import pytest

from gaitlib.data import mapped_file, sequence_file
from gaitlib.data.casia_b import load_split
from gaitlib.data.mapped_file import map_sequences
from gaitlib.data.sequence_file import SequenceError, write_sequence


def frames(count, size=8):
    return np.random.default_rng(count).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"pkl/001/nm-0{n}/000/000.pkl" for n in range(1, 6)]
    for n, path in enumerate(found, 1):
        write_sequence(path, frames(n))
    return [str(path) for path in found]


@pytest.fixture
def reads(monkeypatch):
    """Every path that is read."""
    read, seen = sequence_file.read_sequence, []

    def noted(path):
        seen.append(path)
        return read(path)

    monkeypatch.setattr(sequence_file, "read_sequence", noted)
    return seen


def holds(found, *counts):
    for position, count in enumerate(counts):
        np.testing.assert_array_equal(found[position], frames(count))


def test_the_file_gives_every_sequence_and_is_made_once(tmp_path, paths, reads):
    folder = tmp_path / "mapped"
    holds(map_sequences(folder, paths), 1, 2, 3, 4, 5)
    assert sorted(reads) == paths
    again = map_sequences(folder, paths)
    assert len(reads) == 5
    holds(again, 1, 2, 3, 4, 5)
    assert again[2].flags.writeable is False


def test_a_changed_file_is_made_again_and_the_old_one_is_kept_for_its_users(
    tmp_path, paths, caplog
):
    folder = tmp_path / "mapped"
    old = map_sequences(folder, paths)
    write_sequence(paths[1], frames(7))
    holds(map_sequences(folder, paths), 1, 7)
    holds(old, 1, 2)
    holds(pickle.loads(pickle.dumps(old)), 1, 2)  # as a loading process opens it
    assert "out of date" in caplog.text and old.path.stem.rpartition("-")[0] in caplog.text
    stat = os.stat(paths[0])
    write_sequence(paths[0], 255 - frames(1))  # as long as before: the time alone tells
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    np.testing.assert_array_equal(map_sequences(folder, paths)[0], 255 - frames(1))


def test_who_makes_it_later_writes_the_same(tmp_path, paths, monkeypatch):
    folder, write = tmp_path / "mapped", mapped_file._write

    def slowly(*arguments):
        monkeypatch.setattr(mapped_file, "_write", write)
        first = map_sequences(folder, paths)  # another process, meanwhile
        return write(*arguments) if first else None

    monkeypatch.setattr(mapped_file, "_write", slowly)
    holds(map_sequences(folder, paths), 1, 2, 3, 4, 5)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("fault", ["no index", "half an index", "another index", "short", "none"])
def test_a_file_that_is_not_whole_is_made_again(tmp_path, paths, reads, fault):
    folder = tmp_path / "mapped"
    map_sequences(folder, paths)
    (index,), (content,) = folder.glob("*.json"), folder.glob("*.bin")
    match fault:
        case "no index":
            index.unlink()
        case "half an index":
            index.write_text(index.read_text()[:20])
        case "another index":
            index.write_text(json.dumps([1]))
        case "short":
            content.write_bytes(content.read_bytes()[:-1])
        case "none":
            content.unlink()
    holds(map_sequences(folder, paths), 1, 2, 3, 4, 5)
    assert len(reads) == 10


def test_what_could_not_be_read_is_tried_again(tmp_path, paths, reads, monkeypatch):
    read = sequence_file.read_sequence

    def refused(path):
        if path == paths[1]:
            raise SequenceError(f"cannot read the sequence {path}: PermissionError")
        return read(path)

    monkeypatch.setattr(sequence_file, "read_sequence", refused)
    assert "PermissionError" in map_sequences(tmp_path, paths).faults[1]
    before = len(reads)
    assert "PermissionError" in map_sequences(tmp_path, paths).faults[1]
    assert len(reads) == before  # of the others none was read again
    monkeypatch.setattr(sequence_file, "read_sequence", read)
    holds(map_sequences(tmp_path, paths), 1, 2, 3, 4, 5)


def test_a_full_disk_leaves_nothing_and_says_what_is_needed(tmp_path, paths, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    needed = sum(os.path.getsize(path) for path in paths) / 1e6
    with pytest.raises(OSError, match=rf"{needed:.0f} MB in .*No space.*write cache: false"):
        map_sequences(tmp_path / "mapped", paths)
    assert not list((tmp_path / "mapped").iterdir())


def test_a_split_is_the_same_from_a_mapped_file_faults_included(tmp_path, paths):
    root = tmp_path / "pkl"
    write_sequence(paths[2], frames(3, size=9))
    os.truncate(paths[3], 99)
    partition = tmp_path / "partition.json"
    partition.write_text(json.dumps({"TRAIN_SET": ["001"], "TEST_SET": []}))
    for _ in range(2):  # as it is made, and as it is opened
        plain, found = (
            load_split(root, partition, "TRAIN_SET", cache=cache)
            for cache in (False, tmp_path / "mapped")
        )
        assert found.problems.equals(plain.problems) and len(found.problems) == 2
        assert found.table.equals(plain.table) and len(found) == 3
        for i in range(len(plain)):
            np.testing.assert_array_equal(found.sequence(i), plain.sequence(i))


def test_a_file_of_equal_size_and_time_in_anothers_place_is_read(tmp_path, paths):
    folder = tmp_path / "mapped"
    map_sequences(folder, paths)
    before, other = os.stat(paths[0]), tmp_path / "other.pkl"
    write_sequence(other, 255 - frames(1))
    assert other.stat().st_size == before.st_size
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, paths[0])
    np.testing.assert_array_equal(map_sequences(folder, paths)[0], 255 - frames(1))


def test_what_no_later_start_opens_is_listed(tmp_path, paths):
    folder = tmp_path / "mapped"
    first = map_sequences(folder, paths)
    assert mapped_file.superseded_files(folder) == []
    write_sequence(paths[0], frames(9))
    second, third = map_sequences(folder, paths), map_sequences(folder, paths[1:])
    (folder / "killed-1-2.bin").touch()
    listed = mapped_file.superseded_files(folder)
    old = [first.path.with_name(f"{first.path.stem}.json"), first.path, folder / "killed-1-2.bin"]
    assert sorted(listed) == sorted(old)
    assert not {second.path, third.path} & set(listed)
