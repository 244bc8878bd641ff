"""From a video of a static camera to silhouettes like those of the data set."""

import cv2
import numpy as np
import pytest

from gaitlib.data.alignment import align_frame
from walkers.scene import draw_walk, render
from walkers.video import write_video
from workbook.recognise.background import silhouettes_of_video


@pytest.mark.parametrize(("view", "type"), [("090", "nm-01"), ("000", "cl-01")])
def test_a_filmed_walker_gives_the_silhouettes_that_were_drawn(view, type, tmp_path):
    path = write_video(tmp_path / "walk.avi", 3, type, view, frames=(10, 10))
    found = silhouettes_of_video(path, 64)
    drawn = np.stack([align_frame(m) for m in render(draw_walk(3, type, 0, (10, 10)), view)])
    assert found.shape == drawn.shape == (10, 64, 64) and found.dtype == np.uint8
    both = ((found > 127) & (drawn > 127)).sum()
    either = ((found > 127) | (drawn > 127)).sum()
    assert both / either > 0.85


def _video(path, frames):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120))
    for frame in frames:
        video.write(np.ascontiguousarray(frame, np.uint8))
    video.release()
    return path


def _scene(*people, shift=0):
    """A grey scene with people as dark bars at x."""
    frame = np.full((120, 160, 3), 180)
    frame[::8, :, :] = 90
    for x in people:
        frame[30:100, x : x + 20] = 20
    return np.roll(frame, shift, axis=0)


EMPTY = [_scene()] * 12


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([_scene(70)] * 12, "a whole person is in 0 of 12 frames"),  # stands still: background
        (EMPTY, "a whole person is in 0 of 12 frames"),
        ([_scene(10 + 4 * i, shift=i) for i in range(16)], "the scene without anybody"),
        (EMPTY + [_scene(20 + i, 110 - i) for i in range(8)], "show a second person"),
        (EMPTY + [_scene(0)] * 8, "a whole person is in 0 of 20"),  # cut off by the border
    ],
)
def test_what_cannot_be_segmented_is_refused_with_the_reason(frames, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        silhouettes_of_video(_video(tmp_path / "v.avi", frames), 64)


def test_no_video_and_a_long_one_are_refused(tmp_path, monkeypatch):
    (tmp_path / "v.avi").write_bytes(b"no video")
    with pytest.raises(ValueError, match="no video that OpenCV reads"):
        silhouettes_of_video(tmp_path / "v.avi", 64)
    monkeypatch.setattr("workbook.recognise.background.MAX_FRAMES", 9)
    with pytest.raises(ValueError, match="more than 9 frames: cut out one walk"):
        silhouettes_of_video(_video(tmp_path / "w.avi", EMPTY), 64)
