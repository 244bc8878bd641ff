"""The command line, from a video or masks to names."""

import json

import cv2
import numpy as np
import pytest
from nets import build, resnet, with_statistics
from typer.testing import CliRunner

from gaitlib.data.alignment import align_frame
from gaitlib.data.sequence_file import write_sequence
from gaitlib.deploy.network_file import write_network
from walkers.scene import sequence_frames
from workbook.cli import app
from workbook.recognise.gallery import read_gallery

ARGUMENTS = resnet(4, 8, embedding=16, bins=(16,), classes=None)


def run(*arguments, status=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == status, done.output
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A network, pickles of walkers 1 to 6 at 090, and raw 0/1 masks of walker 2."""
    root = tmp_path_factory.mktemp("home")
    model = with_statistics(build(ARGUMENTS)).eval()
    write_network(model, ARGUMENTS, root / "net.safetensors")
    for subject in range(1, 7):
        half = "known" if subject < 4 else "others"
        frames = sequence_frames(subject, "nm-01", "090", frames=(6, 6), noise=0)
        aligned = np.stack([align_frame(frame) for frame in frames])
        write_sequence(root / half / f"{subject:03}/nm-01/090/090.pkl", aligned)
    for i, frame in enumerate(sequence_frames(2, "nm-01", "090", frames=(6, 6), noise=0)):
        path = root / f"masks/someone/walk/{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), frame // 255)
    return root


@pytest.fixture
def network(home):
    return "--network", home / "net.safetensors"


@pytest.fixture
def gallery(home, network, tmp_path):
    path = tmp_path / "people"
    strangers = ("--held-out", home / "others", "--false-accepts", 0.4)
    done = run("enroll", path, home / "known", *network, *strangers)
    assert "3 people, 3 walks" in done.stdout and "33.33% of 3 held-out walks" in done.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def test_a_video_of_a_walker_has_names_in_one_command(gallery, network, tmp_path):
    video = tmp_path / "door.avi"
    run("walker-video", video, "--subject", 3, "--frames", 6, 6)
    (walk,) = json.loads(run("identify", gallery, video, *network, "--json").stdout)
    assert walk["source"] == str(video) and walk["frames"] == 6
    assert walk["nearest"][0][0] == "003" and len(walk["nearest"]) == 3


def test_raw_masks_have_the_name_of_the_pickles_that_they_make(home, gallery, network):
    for told in ((), ("--mask-threshold", 0, "--layout", "id/seq", "--no-invert")):
        done = run("identify", gallery, home / "masks", *network, *told)
        assert "someone/walk/default (6 frames): 002   [002 0," in done.stdout


def test_embeddings_are_kept_named_and_forgotten(home, gallery, network, tmp_path):
    done = run("embed", home / "known", tmp_path / "walks", *network)
    assert "3 walks:" in done.stdout and "0600" in done.stdout
    table = tmp_path / "walks.safetensors"
    assert "001/nm-01/090 (6 frames): 001" in run("identify", gallery, table).stdout
    done = run("enroll", gallery, table, "--name", "twin", status=2)
    assert "enrolled as '001' and as 'twin'" in done.stderr
    done = run("enroll", gallery, home / "others", *network, "--name", "twin")
    assert "no threshold" in done.stdout
    assert "every walk gets a name" in run("identify", gallery, table).stdout
    run("forget", gallery, "twin")
    assert sorted(set(read_gallery(gallery).names)) == ["001", "002", "003"]


def test_a_source_that_cannot_be_used_does_not_stop_the_others(home, gallery, network, tmp_path):
    (tmp_path / "torn.avi").write_bytes(b"RIFF")
    bad = (tmp_path / "none", tmp_path / "torn.avi")
    for sources in ((*bad, home / "known"), (*bad, home / "known", *bad)):
        done = run("identify", gallery, *sources, *network, status=1)
        assert done.stdout.count("(6 frames)") == 3
    assert [f"left out: {path}: " in done.stderr for path in bad] == [True, True]
    done = run("identify", gallery, *bad, *network, status=2)
    assert all(str(path) in done.stderr for path in bad)
    run("embed", home / "known", tmp_path / "walks", *network)
    done = run("identify", gallery, tmp_path / "walks.safetensors", bad[0], status=1)
    assert "none: nothing is at" in done.stderr


def test_what_cannot_be_used_is_listed_or_refused(home, gallery, network, tmp_path):
    whole = np.zeros((5, 64, 64), np.uint8)
    whole[:, :, 20:40] = 255
    write_sequence(tmp_path / "tree/a/nm-01/090/090.pkl", whole)
    write_sequence(tmp_path / "tree/b/nm-01/090/090.pkl", whole // 255)
    done = run("identify", gallery, tmp_path / "tree", *network, status=1)
    assert "a/nm-01/090" in done.stdout and "0/1 masks" in done.stderr
    for arguments, words in {
        ("identify", gallery, home / "known"): "add --network FILE",
        ("identify", gallery, tmp_path / "none", *network): "nothing is at",
        ("identify", tmp_path / "none", home / "known", *network): "no gallery file at",
        ("enroll", tmp_path / "new"): "nothing to do",
        ("enroll", gallery, home / "masks", *network, "--name", ""): "'' cannot be a person's name",
        ("enroll", gallery, "--held-out", home / "known", *network): "are: leave them out",
        ("forget", gallery, "nobody"): "nobody is called 'nobody'; known are 001, 002, 003",
    }.items():
        assert words in run(*arguments, status=2).stderr
