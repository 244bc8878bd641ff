"""One class turns walks into embeddings, whatever file the network is in, and refuses non-walks."""

import numpy as np
import pytest
import torch
from nets import build, resnet, with_statistics

from gaitlib.deploy.network_file import write_network
from workbook.recognise.recogniser import Recogniser

ARGUMENTS = resnet(2, 4, classes=None)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = with_statistics(build(ARGUMENTS)).eval()
    return write_network(model, ARGUMENTS, tmp_path_factory.mktemp("net") / "small.safetensors")


@pytest.fixture(scope="module")
def recogniser(file):
    return Recogniser(file)


def walk(t=4, size=64, left=22):
    """A person as a bar in the middle, whose width changes."""
    frames = np.zeros((t, size, size), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, left : left + 16 + i] = 255
    return frames


def test_every_form_of_one_walk_has_one_embedding(recogniser):
    whole = walk()
    cut = whole[:, :, 10:54]
    expected = recogniser.network.embed(torch.from_numpy(cut / np.float32(255))[None])[0]
    for form in (whole, cut, torch.from_numpy(whole), whole / np.float32(255), cut / 255):
        torch.testing.assert_close(recogniser.embed(form), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda f: f.astype(np.float32), r"floats of 0 to 255.*divide by 255"),
        (lambda f: f / 127.5 - 1, r"floats of -1 to 1.*scale it"),
        (lambda f: f * np.float32("nan"), "floats of nan"),
        (lambda f: f / np.float32(255 * 255), "0/1 masks"),
        (lambda f: f[:0], "T = 0 frames"),
        (lambda f: f[None], r"a walk is \(T, H, W\), got \(1, 4, 64, 64\)"),
        (lambda f: f.astype(np.int64), "a walk of int64: give uint8"),
        (lambda f: f.repeat(2, 1).repeat(2, 2), "128 x 128, and the network sees 64 x 44"),
        (lambda f: f[:, :, 12:52], "64 x 40, .* pretreat --size 64"),
    ],
)
def test_what_cannot_be_a_walk_is_refused_with_the_fix(recogniser, given, words):
    with pytest.raises(ValueError, match=words):
        recogniser.embed(given(walk()))


def test_no_array_is_named_and_a_mirrored_one_is_taken(recogniser):
    for given in (None, "walk.pkl", np.array([walk(), None], dtype=object)):
        with pytest.raises(TypeError, match=r"array \(T, H, W\) of numbers, got .*find_walks"):
            recogniser.embed(given)
    mirrored = walk()[:, :, ::-1]
    assert torch.equal(recogniser.embed(mirrored), recogniser.embed(mirrored.copy()))
    with pytest.raises(ValueError, match="frames of 0 x 64: nothing"):
        recogniser.embed(walk()[:, :0])


def test_a_file_of_onnx_runtime_embeds_the_same_and_a_wrong_one_is_refused(recogniser, tmp_path):
    onnx_export = pytest.importorskip("gaitlib.deploy.onnx_export")
    import onnx

    path = onnx_export.export_onnx(recogniser.network, tmp_path / "small.onnx")
    other = Recogniser(path)
    torch.testing.assert_close(other.embed(walk()), recogniser.embed(walk()), rtol=1e-4, atol=1e-4)
    assert other.frame_size == recogniser.frame_size == (64, 44)
    assert other.fingerprint != recogniser.fingerprint
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"half.onnx is no network that ONNX Runtime loads: .*"):
        Recogniser(tmp_path / "half.onnx")
    model = onnx.load(path)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "logits"
    onnx.save(model, path)
    with pytest.raises(ValueError, match="'logits'.*, where `gaitlib export`"):
        Recogniser(path)


def test_another_kind_of_file_is_named(file, tmp_path):
    file.with_suffix(".txt").touch()
    (tmp_path / "run-00010.pt").touch()
    for path, words in {
        tmp_path / "run-00010.pt": "training checkpoint: `gaitlib export",
        tmp_path / "none.onnx": "no network at",
        file.with_suffix(".txt"): "no network's file",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            Recogniser(path)
