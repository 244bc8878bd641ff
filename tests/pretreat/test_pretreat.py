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

from gaitlib.data.alignment import align_frame
from gaitlib.data.sequence_file import read_sequence
from gaitlib.system.processes import WorkerError
from workbook.pretreat import mask_files
from workbook.pretreat.pretreat import pretreat_tree


def person(x=150, y=120, width=25, height=80, angle=0.0):
    frame = np.zeros((240, 320), np.uint8)
    cv2.ellipse(frame, (x, y), (width, height), angle, 0, 360, 255, -1)
    return frame


def png(frame):
    return cv2.imencode(".png", frame)[1].tobytes()


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
        person(x=318),
        person(y=0),
        person()[:, 138:162],  # narrower than the window
    ],
)
def test_alignment_follows_the_rule_step_by_step(frame):
    aligned = align_frame(frame)
    assert aligned.dtype == np.uint8 and aligned.shape == (64, 64)
    np.testing.assert_array_equal(aligned, plainly_aligned(frame))


def test_the_person_fills_the_height_and_stands_in_the_middle():
    aligned = align_frame(person(x=60, y=90))
    assert aligned[0].any() and aligned[-1].any()
    columns = aligned.sum(axis=0, dtype=int)
    assert abs(columns[:32].sum() - columns[32:].sum()) <= columns.max()


def test_where_a_person_stands_does_not_matter():
    # the size gives a whole scale, 128 rows to 64, so that resizing sees the same pixels
    frame = np.zeros((240, 320), np.uint8)
    frame[50:178, 100:140] = 255
    moved = np.roll(frame, (13, 40), axis=(0, 1))
    np.testing.assert_array_equal(align_frame(frame), align_frame(moved))


def test_a_frame_without_a_person_is_none():
    frame = np.zeros((240, 320), np.uint8)
    assert align_frame(frame) is None
    frame[0, :40] = 250  # a sum of 10000 is still no person
    assert align_frame(frame) is None
    frame[1, 0] = 1
    assert align_frame(frame) is not None


def test_a_colour_frame_is_refused():
    with pytest.raises(ValueError, match="grey"):
        align_frame(np.zeros((240, 320, 3), np.uint8))


def raw_frames(subject, kind, view, count):
    return {
        f"{subject}/{kind}/{view}/{subject}-{kind}-{view}-{n:03d}.png": png(person(width=20 + n))
        for n in range(1, count + 1)
    }


def write_folder(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_folder_and_archives_give_the_same_tree(tmp_path):
    files = raw_frames("001", "nm-01", "090", 6) | raw_frames("001", "bg-01", "018", 5)
    write_folder(tmp_path / "folder", files)
    (tmp_path / "with").mkdir()
    write_archive(tmp_path / "with/001.tar.gz", files)
    (tmp_path / "without").mkdir()
    write_archive(
        tmp_path / "without/001.tar.gz", {"./" + n.split("/", 1)[1]: d for n, d in files.items()}
    )
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
    write_folder(tmp_path, {f"001/nm-01/090/f-{n}.png": png(f) for n, f in frames.items()})
    pretreat_tree(tmp_path, tmp_path / "pkl", workers=1)
    sequence = read_sequence(tmp_path / "pkl/001/nm-01/090/090.pkl")
    np.testing.assert_array_equal(sequence, [align_frame(f) for f in frames.values()])


def test_the_report_lists_what_was_skipped_and_what_is_short(tmp_path):
    files = raw_frames("001", "nm-01", "090", 5)
    files["001/nm-01/090/001-nm-01-090-006.png"] = png(np.zeros((240, 320), np.uint8))
    files["001/nm-01/090/001-nm-01-090-007.png"] = b"no image"
    files["001/nm-01/090/gei.png"] = png(person())
    files["001/nm-02/090/001-nm-02-090-001.png"] = b""
    write_folder(tmp_path / "raw", files | raw_frames("002", "nm-01", "090", 2))
    report = pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=1)
    reasons = {path.split("/")[-1]: reason for path, reason in report.skipped.to_numpy()}
    assert reasons == {
        "001-nm-01-090-006.png": "no person in it",
        "001-nm-01-090-007.png": "not an image",
        "001-nm-02-090-001.png": "not an image",
        "gei.png": "no frame number at the end of its name",
    }
    short = [tuple(row) for row in report.short.to_numpy()]
    assert short == [("001", "nm-02", "090", 0), ("002", "nm-01", "090", 2)]
    assert not (tmp_path / "pkl/001/nm-02").exists()
    assert len(read_sequence(tmp_path / "pkl/002/nm-01/090/090.pkl")) == 2


def test_a_second_call_makes_only_what_is_missing_or_damaged(tmp_path):
    files = raw_frames("001", "nm-01", "090", 5) | raw_frames("001", "nm-02", "090", 5)
    write_folder(tmp_path / "raw", files | raw_frames("002", "nm-01", "090", 5))
    pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=2)
    good = tmp_path / "pkl/001/nm-01/090/090.pkl"
    before = good.stat().st_mtime_ns
    half = tmp_path / "pkl/001/nm-02/090/090.pkl"
    whole = half.read_bytes()
    half.write_bytes(whole[:1000])
    report = pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=1)
    assert (report.written, report.kept) == (1, 2)
    assert half.read_bytes() == whole and good.stat().st_mtime_ns == before
    assert pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=1, overwrite=True).written == 3


def test_a_killed_process_is_one_clear_error_and_a_second_call_goes_on(tmp_path):
    subjects = [f"{i:03}" for i in range(400)]  # they take longer than a look at what is there
    for subject in subjects:
        write_folder(tmp_path / "raw", raw_frames(subject, "nm-01", "090", 5))
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
    report = pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=1)
    assert report.written > 0 and report.kept > 0
    assert report.written + report.kept == len(subjects)


def test_hostile_names_in_an_archive_write_nothing_outside(tmp_path):
    (tmp_path / "raw").mkdir()
    frame = png(person())
    hostile = ["../../x/nm-01/090/f-1.png", "/etc/nm-01/090/f-1.png", "001/nm-01/../f-1.png"]
    hostile += ["001/nm 01/090/f-1.png", "f-1.png"]
    write_archive(
        tmp_path / "raw/001.tar.gz",
        dict.fromkeys(hostile, frame) | raw_frames("001", "nm-01", "090", 5),
    )
    with tarfile.open(tmp_path / "raw/002.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("002/nm-01/090/f-1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = set(tmp_path.rglob("*"))
    report = pretreat_tree(tmp_path / "raw", tmp_path / "pkl", workers=1)
    assert len(report.skipped) == len(hostile) + 1  # and the link
    new = {p for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert {p for p in new if p.suffix == ".pkl"} == {tmp_path / "pkl/001/nm-01/090/090.pkl"}
    assert {p.parent for p in new if p.suffix != ".pkl"} == {tmp_path / "pkl"}  # the report


def test_another_size_makes_finished_sequences_again(tmp_path):
    write_archive(tmp_path / "001.tar.gz", raw_frames("001", "nm-01", "090", 5))
    file = tmp_path / "pkl/001/nm-01/090/090.pkl"
    for size, written in ((64, 1), (128, 1), (128, 0)):
        report = pretreat_tree(tmp_path, tmp_path / "pkl", workers=1, size=size)
        assert read_sequence(file).shape == (5, size, size) and report.written == written
    with pytest.raises(ValueError, match="size is 100: give 64, 128 or another multiple of 16"):
        pretreat_tree(tmp_path, tmp_path / "pkl", size=100)


def test_a_damaged_archive_is_reported_and_the_others_are_made(tmp_path):
    write_archive(tmp_path / "001.tar.gz", raw_frames("001", "nm-01", "090", 5))
    write_archive(tmp_path / "002.tar.gz", raw_frames("002", "nm-01", "090", 5))
    broken = tmp_path / "001.tar.gz"
    broken.write_bytes(broken.read_bytes()[:-200])
    report = pretreat_tree(tmp_path, tmp_path / "pkl", workers=1)
    assert report.written == 1 and "damaged archive" in report.skipped["reason"][0]
    assert not (tmp_path / "pkl/001").exists()


def test_a_source_without_frames_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no raw data set at .*nowhere"):
        pretreat_tree(tmp_path / "nowhere", tmp_path / "pkl")
    with pytest.raises(FileNotFoundError, match="holds no mask that can be used"):
        pretreat_tree(tmp_path, tmp_path / "pkl", workers=1)
    (tmp_path / "001/nm-01").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no mask that can be used"):
        pretreat_tree(tmp_path, tmp_path / "pkl", workers=1)


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            tar.addfile(info, io.BytesIO(content))


def frames(names):
    return [(f"001/nm-01/000/{n}.png", png(person()), tarfile.REGTYPE) for n in names]


@pytest.mark.parametrize(
    ("limits", "members", "words"),
    [
        ({"MAX_ARCHIVE_BYTES": 20_000}, [("zeros", bytes(40_000), b"0")], "more than 20,000 bytes"),
        ({"MAX_MEMBERS": 3}, frames("123"), "more than 3 members"),
        ({"MAX_IMAGE_BYTES": 9_999}, [("name", bytes(50_000), b"L")], "a part of 50"),
        ({}, [], "damaged archive"),
    ],
)
def test_an_archive_that_unpacks_to_too_much_is_left_out_and_the_others_are_used(
    limits, members, words, tmp_path, monkeypatch
):
    for name, value in limits.items():
        monkeypatch.setattr(mask_files, name, value)
    archive(tmp_path / "001.tar.gz", frames("4") + members)
    if not members:
        (tmp_path / "001.tar.gz").unlink()
        os.mkfifo(tmp_path / "001.tar.gz")
    folder = tmp_path / "002" / "nm-01" / "000"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(png(person()))
    report = pretreat_tree(tmp_path, tmp_path / "out", workers=1)
    assert report.written == 1 and report.lost == ("001.tar.gz",)
    assert report.skipped["path"][0] == str(tmp_path / "001.tar.gz")
    assert words in report.skipped["reason"][0]
    assert not (tmp_path / "out" / "001").exists()


def test_frames_that_cannot_be_decoded_are_listed_and_the_others_used(tmp_path):
    folder = tmp_path / "001" / "nm-01" / "000"
    folder.mkdir(parents=True)
    whole = png(person())
    wide = whole[:16] + (50_000).to_bytes(4, "big") * 2 + whole[24:]
    for name, content in {"1": whole, "2": wide, "3": whole[:20], "4": b"\xff\xd8\xff"}.items():
        (folder / f"{name}.png").write_bytes(content)
    os.mkfifo(folder / "5.png")
    report = pretreat_tree(tmp_path, tmp_path / "out", workers=1)
    assert report.written == 1
    reasons = {path[-5]: reason for path, reason in report.skipped.itertuples(index=False)}
    assert reasons == {
        "2": "50000 x 50000 pixels, too large for a frame",
        "3": "not an image: Truncated File Read",
        "4": "not an image",
        "5": "no regular file",
    }
