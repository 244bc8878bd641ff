import json
import os
import pickle

import numpy as np
import pytest

from gaitlib.data.casia_b import SilhouetteDataset, index_tree, load_split
from gaitlib.data.partition import read_partition
from gaitlib.data.sequence_file import SequenceError, read_sequence, write_sequence


def frames(count=4, size=64):
    return np.random.default_rng(count).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "pkl"
    for subject in ("001", "002", "003"):
        for kind in ("nm-01", "nm-02"):
            for n, view in enumerate(("000", "090")):
                write_sequence(root / subject / kind / view / f"{view}.pkl", frames(4 + n))
    split(root, ["001", "002"], ["003"])
    return root


def split(root, train, test):
    path = root / "partition.json"
    path.write_text(json.dumps({"TRAIN_SET": train, "TEST_SET": test}))
    return path


HUNGRY = {
    "memo": (b"\x80\x04Nr\xff\xff\xff\x7f.", "memo entry 2147483647, which no array needs"),
    "memo as text": (b"Np2147483647\n.", "memo entry"),
    "bytes": (b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".", "truncated"),
    "opcodes": (b"\x80\x04" + b"(" * 5000 + b".", "more than 1000 opcodes"),
    "another opcode": (b"P1\n.", "the opcode PERSID, which no array needs"),
    "no end": (b"\x80\x04N", "truncated"),
}


@pytest.mark.parametrize(("content", "words"), HUNGRY.values(), ids=HUNGRY)
def test_a_pickle_that_asks_for_more_than_an_array_is_not_unpickled(tmp_path, content, words):
    path = tmp_path / "000.pkl"
    path.write_bytes(content)
    with pytest.raises(SequenceError, match=words) as refused:
        read_sequence(path)
    assert str(path) in str(refused.value)


def test_a_pipe_and_a_huge_file_are_not_read(tmp_path):
    pipe, huge = tmp_path / "000.pkl", tmp_path / "018.pkl"
    os.mkfifo(pipe)
    with pytest.raises(SequenceError, match="000.pkl is no regular file: remove it"):
        read_sequence(pipe)
    with huge.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(SequenceError, match="has 1,099,511,627,776 bytes, more than any sequence"):
        read_sequence(huge)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("numpy_1", [False, True])
def test_any_pickle_of_an_array_reads_back(tmp_path, protocol, order, numpy_1):
    expected = np.asarray(frames(3, 8), order=order)
    data = pickle.dumps(expected, protocol)
    if numpy_1 and protocol < 4:  # from protocol 4 on the names carry their lengths
        data = data.replace(b"numpy._core", b"numpy.core")
    (tmp_path / "a.pkl").write_bytes(data)
    read = read_sequence(tmp_path / "a.pkl")
    np.testing.assert_array_equal(read, expected)
    assert read.flags.c_contiguous and read.flags.writeable and read.dtype == np.uint8


def test_what_is_written_loads_in_any_program(tmp_path):
    write_sequence(tmp_path / "x/a.pkl", frames())
    with open(tmp_path / "x/a.pkl", "rb") as file:
        np.testing.assert_array_equal(pickle.load(file), frames())
    assert os.listdir(tmp_path / "x") == ["a.pkl"]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_does_nothing(tmp_path, protocol):
    victim = tmp_path / "victim"
    victim.touch()
    for attack in (
        Hostile(os.remove, str(victim)),
        Hostile(eval, f"__import__('os').remove({str(victim)!r})"),
        Hostile(np.fromfile, str(victim)),
        [frames(), Hostile(os.system, f"rm {victim}")],
    ):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(attack, protocol))
        with pytest.raises(SequenceError, match="a.pkl.*which no array needs"):
            read_sequence(tmp_path / "a.pkl")
    assert victim.exists()


def test_an_array_built_of_raw_addresses_is_refused(tmp_path):
    # numpy.ndarray itself would take these bytes for a Python object
    attack = Hostile(np.ndarray, (1,), np.dtype(object), b"\x41" * 8)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(attack, 4))
    with pytest.raises(SequenceError, match="a.pkl: TypeError"):
        read_sequence(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (frames().astype(np.float32), "dtype 'f4'"),
        (frames() > 9, "dtype 'b1'"),
        (np.array([[[None]]]), "dtype 'O8'"),
        (frames()[0], "shape"),
        (frames()[:0], "empty"),
        ([1, 2], "holds a list"),
        (np.dtype(np.uint8), "not a pickled"),
    ],
)
def test_anything_but_uint8_frames_is_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(SequenceError, match=f"a.pkl.*{reason}"):
        read_sequence(tmp_path / "a.pkl")


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, -8, -8), (10**12, 8, 8), (2.0, 8, 8)])
def test_a_shape_that_its_bytes_do_not_fill_is_refused(tmp_path, shape):
    make, arguments, state = frames().__reduce__()
    lying = Hostile(make, *arguments)
    lying.call = make, arguments, (state[0], shape, state[2], False, b"12345")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(lying))
    with pytest.raises(SequenceError, match=r"a\.pkl (is|holds)"):
        read_sequence(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_truncated_or_absent_file_is_refused(tmp_path, protocol):
    with pytest.raises(SequenceError, match=r"absent\.pkl"):
        read_sequence(tmp_path / "absent.pkl")
    whole = pickle.dumps(frames(2, 8), protocol)
    for length in range(0, len(whole), 7):
        (tmp_path / "a.pkl").write_bytes(whole[:length])
        with pytest.raises(SequenceError, match=r"a\.pkl"):
            read_sequence(tmp_path / "a.pkl")


def test_noise_is_refused_and_never_crashes(tmp_path):
    rng = np.random.default_rng(0)
    whole = bytearray(pickle.dumps(frames(1, 4), 4))
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / "a.pkl").write_bytes(damaged)
        try:
            assert read_sequence(tmp_path / "a.pkl").dtype == np.uint8  # a pixel may have changed
        except SequenceError:
            pass


@pytest.mark.parametrize("bad", [frames()[0], frames()[:0], frames() / 255])
def test_writing_anything_but_frames_is_refused(tmp_path, bad):
    with pytest.raises(SequenceError, match="uint8"):
        write_sequence(tmp_path / "a.pkl", bad)
    assert not list(tmp_path.iterdir())


def test_the_index_is_sorted_text(tree):
    table = index_tree(tree)
    assert list(table.columns) == ["subject", "type", "view", "path", "problem"]
    rows = list(table[["subject", "type", "view"]].itertuples(index=False, name=None))
    assert rows == sorted(rows) and len(rows) == 12 and rows[0] == ("001", "nm-01", "000")
    assert table["path"][0] == str(tree / "001/nm-01/000/000.pkl")


@pytest.mark.parametrize("cache", [False, True])
def test_a_split_holds_its_subjects_frames_and_labels(tree, cache):
    dataset = load_split(tree, tree / "partition.json", "TRAIN_SET", cache=cache)
    assert len(dataset) == 8 and dataset.problems.empty
    assert dataset.subjects == ["001", "002"]
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.table["frames"].tolist() == [4, 5] * 4
    for i in range(8):
        np.testing.assert_array_equal(dataset.sequence(i), frames(4 + i % 2))


def test_subjects_on_one_side_only_are_reported(tree, caplog):
    dataset = load_split(tree, split(tree, ["001", "007"], ["003"]), "TRAIN_SET")
    assert dataset.subjects == ["001"]
    assert dataset.problems[["subject", "problem"]].to_numpy().tolist() == [
        ["002", "on disk, but in neither set"],
        ["007", "in TRAIN_SET, but not on disk"],
    ]
    assert "007 in TRAIN_SET, but not on disk" in caplog.text


def test_a_missing_partition_and_a_subject_without_sequences_are_one_clear_error(tree):
    partition = split(tree, ["008"], [])
    with pytest.raises(FileNotFoundError, match="no data set at .*nowhere"):
        load_split(tree / "nowhere", tree / "nowhere/partition.json", "TRAIN_SET")
    (tree / "008/nm-01/000").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no sequence .*008.*pretreat"):
        load_split(tree, partition, "TRAIN_SET")


def test_among_several_pickles_none_is_taken_without_a_choice(tree, caplog):
    folder = tree / "001/nm-01/000"
    (folder / "000.pkl").rename(folder / "06-000-Camera-Sils_aligned.pkl")
    write_sequence(folder / "02-000-LiDAR-PCDs_sils.pkl", frames(4))
    (folder / "04-000-Ratios.pkl").write_bytes(pickle.dumps(np.ones(4)))
    dataset = load_split(tree, tree / "partition.json", "TRAIN_SET")
    assert len(dataset) == 7 and "1 of 8 sequences are left out" in caplog.text
    (problem,) = dataset.problems["problem"]
    assert problem.startswith("3 pickles (02-000-LiDAR-PCDs_sils.pkl, 04-") and "_in_use" in problem
    chosen = index_tree(tree, ["001"], file_in_use=2)
    assert chosen["path"][0] == str(folder / "06-000-Camera-Sils_aligned.pkl")
    assert chosen["problem"][1].startswith("data_cfg.data_in_use asks for file 2 (from 0) of 090")
    with pytest.raises(ValueError, match="if they are no silhouettes, .* so it is no silhouette"):
        SilhouetteDataset(index_tree(tree, ["001"], file_in_use=1)[:1])


def test_a_file_that_changes_after_it_was_checked_is_refused_when_it_is_read(tree):
    dataset = load_split(tree, tree / "partition.json", "TRAIN_SET")
    write_sequence(dataset.table["path"][0], frames(4, size=32))
    with pytest.raises(SequenceError, match=r"000\.pkl changed .*\(4, 64, 64\).*\(4, 32, 32\)"):
        dataset.sequence(0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "a list"),
        ('{"TRAIN_SET": []}', "no TEST_SET"),
        ('{"TRAIN_SET": [1], "TEST_SET": []}', "as text"),
        ('{"TRAIN_SET": "001", "TEST_SET": []}', "as text"),
        ('{"TRAIN_SET": ["001", "001"], "TEST_SET": []}', "more than once"),
        ('{"TRAIN_SET": ["001"], "TEST_SET": ["001"]}', "both sets"),
    ],
)
def test_a_wrong_partition_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "partition.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        read_partition(path)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="dataset_partition"):
        read_partition(path)


def test_a_hidden_file_beside_a_sequence_is_not_read(tmp_path):
    """File managers make them: ``._000.pkl`` comes before ``sequence.pkl``."""
    folder = tmp_path / "001" / "nm-01" / "000"
    write_sequence(folder / "sequence.pkl", frames(2, size=4))
    (folder / "._sequence.pkl").write_bytes(b"\0")
    assert index_tree(tmp_path)["path"].tolist() == [str(folder / "sequence.pkl")]
    (folder / "sequence.pkl").unlink()
    with pytest.raises(FileNotFoundError, match="no sequence"):
        index_tree(tmp_path)
