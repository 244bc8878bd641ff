"""Masks as people have them: every kind is read right, or refused by name."""

import io
import json
import shutil
from dataclasses import replace
from itertools import cycle

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from gaitlib.data.alignment import align_frame
from gaitlib.data.casia_b import SilhouetteDataset, index_tree
from gaitlib.data.sequence_file import read_sequence, write_sequence
from gaitlib.data.silhouettes import mask_fault
from workbook.cli import app
from workbook.pretreat.mask_options import MaskOptions
from workbook.pretreat.pretreat import pretreat_tree


def person(i=0):
    frame = np.zeros((120, 160), np.uint8)
    cv2.ellipse(frame, (70 + i, 60), (14 + i, 45), 0, 0, 360, 255, -1)
    return frame


def image(array, form="PNG", **options):
    stream = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(stream, form, **options)
    return stream.getvalue()


def palette(mask, colours):
    picture = Image.fromarray((mask > 0).astype(np.uint8), "P")
    picture.putpalette(colours)
    return picture


def rgba(mask):
    return np.dstack([np.full((*mask.shape, 3), 200, np.uint8), mask])


#: Kind of file: its ending, and the content for a mask of 0 and 255.
KINDS = {
    "0/255": (".png", image),
    "0/1": (".png", lambda m: image(m // 255)),
    "1 bit": (".png", lambda m: image(Image.fromarray(m).convert("1"))),
    "16 bits": (".png", lambda m: image(m.astype(np.uint16) * 257)),
    "16 bits of 0/1": (".tif", lambda m: image((m // 255).astype(np.uint16), "TIFF")),
    "palette": (".png", lambda m: image(palette(m, [0, 0, 0, 128, 0, 0]))),
    "palette, person first": (".png", lambda m: image(palette(255 - m, [255] * 3 + [0] * 3))),
    "RGB": (".bmp", lambda m: image(np.dstack([m] * 3), "BMP")),
    "RGBA, alpha": (".png", lambda m: image(rgba(m))),
    "RGBA, opaque": (".PNG", lambda m: image(np.dstack([m] * 3 + [np.full_like(m, 255)]))),
    "grey and alpha": (".png", lambda m: image(np.dstack([m * 0, m]))),
    "inverted": (".png", lambda m: image(255 - m)),
    "inverted 0/1": (".Tiff", lambda m: image(1 - m // 255, "TIFF")),
    "JPEG": (".JPG", lambda m: image(m, "JPEG", quality=90)),
    "inverted JPEG": (".jpeg", lambda m: image(255 - m, "JPEG", quality=90)),
}


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def walk(ending=".png", content=image, folder="001/nm-01/090", count=6):
    return {f"{folder}/{i:02}{ending}": content(person(i)) for i in range(count)}


def convert(folder, **options):
    """Make folder/pkl from folder/raw in this process, and return the report."""
    return pretreat_tree(folder / "raw", folder / "pkl", workers=1, **options)


def pretreat(folder, *options):
    command = ["pretreat", f"{folder}/raw", f"{folder}/pkl", "--workers", "1", *options]
    return CliRunner().invoke(app, command)


SEQUENCE = "001/nm-01/090/090.pkl"
EXPECTED = np.stack([align_frame(person(i)) for i in range(6)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_gives_the_same_silhouettes(kind, tmp_path):
    write(tmp_path / "raw", walk(*KINDS[kind]))
    report = convert(tmp_path)
    assert report.skipped.empty and report.written == 1
    found = read_sequence(tmp_path / "pkl" / SEQUENCE)
    if "JPEG" in kind:  # edges move by a pixel
        assert ((found > 127) != (EXPECTED > 127)).mean() < 0.02
    else:
        np.testing.assert_array_equal(found, EXPECTED)


TURNS = cycle([0, 255])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda m: image(m // 255 * 3 + (np.indices(m.shape)[0] > 60)), "4 levels from 0 to 4"),
        (lambda m: image(m.astype(np.uint16) * 3 + np.indices(m.shape)[1].astype(np.uint16)), "16"),
        (lambda m: image(m ^ next(TURNS)), "bright border and the others a"),
    ],
)
def test_masks_that_say_nothing_are_refused_with_the_option_that_decides(content, words, tmp_path):
    write(tmp_path / "raw", walk(content=content))
    with pytest.raises(ValueError, match=words) as refused:
        convert(tmp_path)
    assert "--threshold" in str(refused.value) or "--invert" in str(refused.value)


def test_what_is_told_decides_and_is_not_mixed_with_what_was_read_before(tmp_path):
    labels = walk(content=lambda m: image(m // 255 * 3 + (np.indices(m.shape)[0] > 60)))
    write(tmp_path / "raw", labels)
    told = MaskOptions(threshold=2)
    assert convert(tmp_path, masks=told).written == 1
    np.testing.assert_array_equal(read_sequence(tmp_path / "pkl" / SEQUENCE), EXPECTED)
    with pytest.raises(ValueError, match="made from masks read as .* make it again with --overwri"):
        convert(tmp_path, masks=replace(told, invert=True))
    assert json.loads((tmp_path / "pkl/pretreat_read_as.json").read_text())["above"] == 2


LAYOUTS = {
    "id/type/view": ("001/nm-01/090", "001/nm-01/090"),
    "oumvlp": ("Silhouette_090-00/00001", "00001/00/090"),
    "grew": ("train/00001/4XPn5Z28", "00001train/00/4XPn5Z28"),
    "id/seq": ("ann/walk1", "ann/walk1/default"),
    "walk": ("corridor", "corridor/00/default"),
    "type/view": ("nm-01/090", "raw/nm-01/090"),  # the set is one subject, called raw
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "zip", "gztar", "tar"])
def test_every_layout_is_found_in_folders_and_in_archives(layout, form, tmp_path):
    raw, made = LAYOUTS[layout]
    src = tmp_path / "raw"
    write(src, walk(folder=raw, count=5))
    if form != "folder":
        src = shutil.make_archive(src, form, tmp_path, "raw")
    report = pretreat_tree(src, tmp_path / "pkl", workers=1)
    assert report.written == 1 and report.skipped.empty, report.skipped.to_numpy()
    [path] = (tmp_path / "pkl" / made).glob("*.pkl")
    assert path.stem == path.parent.name
    np.testing.assert_array_equal(read_sequence(path), EXPECTED[:5])


def test_one_subject_joins_a_tree_of_others_and_a_folder_to_rename_is_named(tmp_path):
    write(tmp_path / "raw", walk(folder="001/nm-01/090"))
    write(tmp_path / "new", walk(folder="002/nm-01/090") | walk(folder="Zoë/nm-01/090"))
    convert(tmp_path)
    report = pretreat_tree(tmp_path / "new/002", tmp_path / "pkl", workers=1)
    assert report.written == 1 and (tmp_path / "pkl/002/nm-01/090/090.pkl").exists()
    report = pretreat_tree(tmp_path / "new", tmp_path / "pkl", workers=1)
    assert report.lost == ("Zoë",)
    assert set(report.skipped["reason"]) == {
        "rename the folder 'Zoë': use A to Z, a to z, digits, _ and - only"
    }


def test_grews_test_half_has_opengaits_names(tmp_path):
    videos = ("test/gallery/00007/zz", "test/gallery/00007/aa", "test/probe/bb", "train/00001/cc")
    for video in videos:
        write(tmp_path / "raw", walk(folder=video, count=5))
    convert(tmp_path)
    made = {p.parent.relative_to(tmp_path / "pkl").as_posix() for p in tmp_path.rglob("*.pkl")}
    assert made == {"00007/01/aa", "00007/02/zz", "probe/03/bb", "00001train/00/cc"}


def test_nothing_is_dropped_in_silence_and_a_lost_subject_ends_with_status_1(tmp_path):
    files = walk() | walk(content=lambda m: image(m * 0), folder="002/nm-01/090")
    files |= {"001/nm-01/090/notes.txt": b"x", "001/nm-01/090/._01.png": b"x"}
    files |= {"003/00.png": image(person()), "readme.md": b"x"}
    write(tmp_path / "raw", files)
    (tmp_path / "raw/004").mkdir()
    done = pretreat(tmp_path)
    assert done.exit_code == 1 and "LOST, without one sequence: 002, 003" in done.stdout
    table = pd.read_csv(tmp_path / "pkl/pretreat_skipped.csv")
    reasons = {path.removeprefix(f"{tmp_path}/raw/"): why for path, why in table.to_numpy()}
    assert len(reasons) == len(table) == 11
    assert {reasons.pop(f"002/nm-01/090/{i:02}.png") for i in range(6)} == {"no person in it"}
    assert reasons == {
        "001/nm-01/090/notes.txt": "no mask: .png, .jpg, .jpeg, .bmp, .tif, .tiff, .pkl are read",
        "001/nm-01/090/._01.png": "a hidden file",
        "003/00.png": "003 is not the layout id/type/view",
        "readme.md": "no mask: .png, .jpg, .jpeg, .bmp, .tif, .tiff, .pkl are read",
        "004": "an empty folder",
    }


def test_what_cannot_be_told_or_read_is_refused(tmp_path):
    write(tmp_path / "raw", walk())
    for option, words in {
        ("--threshold", -5): "of 8 bits: give 0 to 254",
        ("--threshold", 255): "of 8 bits: give 0 to 254",
        ("--workers", -1): "--workers",
        ("--layout", "ouvmlp"): "unknown layout 'ouvmlp'; choose from id/type/view, oumvlp, ",
        ("--size", 100): "size is 100: give 64, 128 or another multiple of 16",
    }.items():
        done = pretreat(tmp_path, *option)
        assert done.exit_code == 2 and words in done.stderr
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "raw").write_bytes(image(person()))
    done = pretreat(tmp_path)
    assert done.exit_code == 2 and "raw is no folder and no archive (.tar, " in done.stderr


def test_the_report_is_written_when_nothing_could_be_used(tmp_path):
    write(tmp_path / "raw", {"001/nm-01/090/01.png": b"no image"})
    done = pretreat(tmp_path)
    assert done.exit_code == 2 and "error: " in done.stderr
    assert "pretreat_skipped.csv, the first is: not an image" in done.stderr
    table = pd.read_csv(tmp_path / "pkl/pretreat_skipped.csv")
    assert table["reason"].tolist() == ["not an image"]


def test_a_preview_shows_what_was_understood_and_converts_nothing(tmp_path):
    write(tmp_path / "raw", walk(*KINDS["inverted 0/1"], folder="Silhouette_090-00/00001"))
    done = pretreat(tmp_path, "--preview")
    assert done.exit_code == 0, done.output
    for words in ("layout oumvlp", "subject 00001, type 00, view 090", "0 is background", "bright"):
        assert words in done.stdout
    assert [p.name for p in (tmp_path / "pkl").iterdir()] == ["pretreat_preview.png"]
    sheet = cv2.imread(str(tmp_path / "pkl/pretreat_preview.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape[0] == 2 * 128 + 8 and sheet[200:, 60:70].max() == 255


def test_pickles_of_0_and_1_are_read_again_into_silhouettes(tmp_path):
    write_sequence(tmp_path / "raw" / SEQUENCE, EXPECTED // 255)
    assert convert(tmp_path).written == 1
    found = read_sequence(tmp_path / "pkl" / SEQUENCE)
    assert found.max() == 255 and not mask_fault(found)


DOT = np.zeros((64, 64), np.uint8)
DOT[30, 30] = 255
FAULTS = {
    "0/1 masks": lambda f: f // 255,
    "largest value is 85 of 255": lambda f: f // 3,
    "inverted masks": lambda f: 255 - f,
    "all black": lambda f: f * 0,
    "frames that are 0.02% filled": lambda f: f * 0 + DOT,
}


@pytest.mark.parametrize("words", FAULTS)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_data_set_of_no_silhouettes_is_an_error_that_names_the_fix(words, mapped, tmp_path):
    write_sequence(tmp_path / SEQUENCE, FAULTS[words](EXPECTED[:2]))
    cache = tmp_path / "mapped" if mapped else False
    with pytest.raises(ValueError, match=f"none of 1 sequences.*{words}.*(pretreat|segment)"):
        SilhouetteDataset(index_tree(tmp_path, ["001"]), cache=cache)
    write_sequence(tmp_path / "001/nm-02/090/090.pkl", EXPECTED)
    dataset = SilhouetteDataset(index_tree(tmp_path, ["001"]), cache=cache)
    assert len(dataset) == 1 and words in dataset.problems["problem"][0]


def test_drawn_and_real_shares_of_silhouettes_are_no_fault():
    assert mask_fault(EXPECTED) == ""
    wide = np.zeros((1, 64, 44), np.uint8)
    wide[:, :, 4:40] = 255  # four fifths of a cut frame, wider than any coat
    assert mask_fault(wide) != "" and mask_fault(wide // 2 * 2) != ""
    coat = np.zeros((1, 64, 64), np.uint8)
    coat[:, 8:, 12:52] = 220
    assert mask_fault(coat) == ""
