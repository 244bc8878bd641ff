import io
import os
import signal
import tarfile
import threading
import time
from multiprocessing import active_children

import cv2
import numpy as np
import pytest
from test_masks import SEQUENCE, convert, image, write

from gaitlib.data.alignment import align_frame
from gaitlib.data.sequence_file import read_sequence
from gaitlib.system.processes import WorkerError
from workbook.pretreat import mask_files
from workbook.pretreat.pretreat import pretreat_tree


def person(x=150, y=120, width=25, height=80, angle=0.0):
    frame = np.zeros((240, 320), np.uint8)
    cv2.ellipse(frame, (x, y), (width, height), angle, 0, 360, 255, -1)
    return frame


def plainly_aligned(frame):
    """The rule in slow steps: crop, resize, pad, cut around the column of half the mass."""
    rows = [y for y in range(len(frame)) if frame[y].any()]
    body = frame[rows[0] : rows[-1] + 1]
    width = int(64 * body.shape[1] / body.shape[0])
    body = cv2.resize(body, (width, 64), interpolation=cv2.INTER_CUBIC).astype(int)
    total, so_far, centre = body.sum(), 0, 0
    for x in range(width):
        so_far += body[:, x].sum()
        if so_far > total / 2:
            centre = x
            break
    padded = np.zeros((64, width + 64), int)
    padded[:, 32 : 32 + width] = body
    return padded[:, centre : centre + 64]


@pytest.mark.parametrize(
    "frame",
    [
        person(),
        person(angle=25.0),
        person(x=2),  # the window leaves the image on the left
        person()[:, 138:162],  # narrower than the window
    ],
)
def test_alignment_follows_the_rule_step_by_step(frame):
    aligned = align_frame(frame)
    assert aligned.dtype == np.uint8 and aligned.shape == (64, 64)
    np.testing.assert_array_equal(aligned, plainly_aligned(frame))


def test_a_frame_without_a_person_is_none_and_a_colour_frame_is_refused():
    frame = np.zeros((240, 320), np.uint8)
    assert align_frame(frame) is None
    frame[0, :40] = 250  # a sum of 10000 is still no person
    assert align_frame(frame) is None
    frame[1, 0] = 1
    assert align_frame(frame) is not None
    with pytest.raises(ValueError, match="grey"):
        align_frame(np.zeros((240, 320, 3), np.uint8))


def raw_frames(subject, kind, view, count):
    return {
        f"{subject}/{kind}/{view}/{subject}-{kind}-{view}-{n:03d}.png": image(person(width=20 + n))
        for n in range(1, count + 1)
    }


def write_archive(path, files, kinds=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), (kinds or {}).get(name, tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(data))


def test_a_folder_and_archives_give_the_same_tree(tmp_path):
    files = raw_frames("001", "nm-01", "090", 6) | raw_frames("001", "bg-01", "018", 5)
    write(tmp_path / "folder", files)
    write_archive(tmp_path / "with/001.tar.gz", files)
    inner = {"./" + name.split("/", 1)[1]: data for name, data in files.items()}
    write_archive(tmp_path / "without/001.TGZ", inner)
    trees = []
    for kind in ("folder", "with", "without"):
        report = pretreat_tree(tmp_path / kind, tmp_path / f"{kind}-pkl", workers=1)
        assert (report.written, report.kept) == (2, 0)
        assert report.skipped.empty and report.short.empty
        found = sorted((tmp_path / f"{kind}-pkl").rglob("*.pkl"))
        trees.append({str(p.relative_to(tmp_path / f"{kind}-pkl")): p.read_bytes() for p in found})
    assert sorted(trees[0]) == ["001/bg-01/018/018.pkl", "001/nm-01/090/090.pkl"]
    assert trees[0] == trees[1] == trees[2]


def test_frames_stand_in_the_order_of_their_numbers(tmp_path):
    frames = {2: person(width=20), 10: person(width=40), 100: person(width=60)}
    write(tmp_path, {f"001/nm-01/090/f-{n}.png": image(f) for n, f in frames.items()})
    pretreat_tree(tmp_path, tmp_path / "pkl", workers=1)
    sequence = read_sequence(tmp_path / "pkl" / SEQUENCE)
    np.testing.assert_array_equal(sequence, [align_frame(f) for f in frames.values()])


def test_the_report_lists_what_was_skipped_and_what_is_short(tmp_path):
    whole = image(person())
    odd = {
        "6.png": image(np.zeros((240, 320), np.uint8)),
        "7.png": b"no image",
        "8.png": whole[:16] + (50_000).to_bytes(4, "big") * 2 + whole[24:],
        "9.png": whole[:20],
        "gei.png": whole,
    }
    write(tmp_path / "raw/001/nm-01/090", odd)
    os.mkfifo(tmp_path / "raw/001/nm-01/090/10.png")
    write(tmp_path / "raw", raw_frames("001", "nm-01", "090", 5) | {"001/nm-02/090/1.png": b""})
    write(tmp_path / "raw", raw_frames("002", "nm-01", "090", 2))
    report = convert(tmp_path)
    reasons = {path.split("/")[-1]: reason for path, reason in report.skipped.to_numpy()}
    assert reasons == {
        "6.png": "no person in it",
        "7.png": "not an image",
        "8.png": "50000 x 50000 pixels, too large for a frame",
        "9.png": "not an image: Truncated File Read",
        "gei.png": "no frame number at the end of its name",
        "10.png": "no regular file",
        "1.png": "not an image",
    }
    short = [tuple(row) for row in report.short.to_numpy()]
    assert short == [("001", "nm-02", "090", 0), ("002", "nm-01", "090", 2)]
    assert not (tmp_path / "pkl/001/nm-02").exists()
    assert len(read_sequence(tmp_path / "pkl/002/nm-01/090/090.pkl")) == 2


def test_a_second_call_makes_only_what_is_missing_or_damaged(tmp_path):
    files = raw_frames("001", "nm-01", "090", 5) | raw_frames("001", "nm-02", "090", 5)
    write(tmp_path / "raw", files | raw_frames("002", "nm-01", "090", 5))
    pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=2)
    good = tmp_path / "pkl" / SEQUENCE
    before = good.stat().st_mtime_ns
    half = tmp_path / "pkl/001/nm-02/090/090.pkl"
    whole = half.read_bytes()
    half.write_bytes(whole[:1000])
    report = convert(tmp_path)
    assert (report.written, report.kept) == (1, 2)
    assert half.read_bytes() == whole and good.stat().st_mtime_ns == before
    assert convert(tmp_path, overwrite=True).written == 3


def test_a_killed_process_is_one_clear_error_and_a_second_call_goes_on(tmp_path):
    subjects = [f"{i:03}" for i in range(400)]  # they take longer than a look at what is there
    for subject in subjects:
        write(tmp_path / "raw", raw_frames(subject, "nm-01", "090", 5))
    before, first = set(active_children()), tmp_path / "pkl/000/nm-01/090/090.pkl"

    def kill_one():
        while not first.exists():
            time.sleep(0.001)
        os.kill((set(active_children()) - before).pop().pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(WorkerError, match="one of 2 processes .* is kept: run again to continue"):
        pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=2)
    killer.join()
    report = convert(tmp_path)
    assert report.written > 0 and report.kept > 0
    assert report.written + report.kept == len(subjects)


def test_hostile_names_in_an_archive_write_nothing_outside(tmp_path):
    hostile = ["../../x/nm-01/090/f-1.png", "/etc/nm-01/090/f-1.png", "001/nm-01/../f-1.png"]
    hostile += ["001/nm 01/090/f-1.png", "f-1.png"]
    files = dict.fromkeys(hostile, image(person())) | raw_frames("001", "nm-01", "090", 5)
    write_archive(tmp_path / "raw/001.tar.gz", files)
    link = "002/nm-01/090/f-1.png"
    write_archive(tmp_path / "raw/002.tar.gz", {link: b""}, {link: tarfile.SYMTYPE})
    before = set(tmp_path.rglob("*"))
    report = convert(tmp_path)
    assert len(report.skipped) == len(hostile) + 1  # and the link
    new = {p for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert {p for p in new if p.suffix == ".pkl"} == {tmp_path / "pkl" / SEQUENCE}
    assert {p.parent for p in new if p.suffix != ".pkl"} == {tmp_path / "pkl"}  # the report


def test_another_size_makes_finished_sequences_again(tmp_path):
    write_archive(tmp_path / "001.tar.gz", raw_frames("001", "nm-01", "090", 5))
    file = tmp_path / "pkl" / SEQUENCE
    for size, written in ((64, 1), (128, 1), (128, 0)):
        report = pretreat_tree(tmp_path, tmp_path / "pkl", workers=1, size=size)
        assert read_sequence(file).shape == (5, size, size) and report.written == written


def test_a_source_without_frames_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no raw data set at .*raw"):
        convert(tmp_path)
    (tmp_path / "raw/001").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no mask that can be used"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("limits", "file", "kind", "words"),
    [
        ({"MAX_ARCHIVE_BYTES": 20_000}, bytes(40_000), b"0", "more than 20,000 bytes"),
        ({"MAX_MEMBERS": 1}, b"x", b"0", "more than 1 members"),
        ({"MAX_IMAGE_BYTES": 9_999}, bytes(50_000), b"L", "a part of 50"),
        ({}, b"cut off", b"0", "none of it was used: Compressed file ended before"),
        ({}, b"pipe", b"0", "none of it was used: no regular file"),
    ],
)
def test_an_archive_that_is_damaged_or_unpacks_to_too_much_is_left_out_and_the_others_are_used(
    limits, file, kind, words, tmp_path, monkeypatch
):
    for name, value in limits.items():
        monkeypatch.setattr(mask_files, name, value)
    path = tmp_path / "raw/001.tar.gz"
    files = raw_frames("001", "nm-01", "000", 1) | {"file": file}
    write_archive(path, files, {"file": kind})
    if file == b"cut off":
        path.write_bytes(path.read_bytes()[:-100])
    if file == b"pipe":
        path.unlink()
        os.mkfifo(path)
    write(tmp_path / "raw", raw_frames("002", "nm-01", "000", 1))
    report = convert(tmp_path)
    assert report.written == 1 and report.lost == ("001.tar.gz",)
    assert report.skipped["path"][0] == str(path)
    assert words in report.skipped["reason"][0]
    assert not (tmp_path / "pkl/001").exists()
