import os
import signal
import time
from collections import Counter
from functools import partial
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from gaitlib.data.batches import (
    InferenceSampler,
    LoaderError,
    TripletSampler,
    choose_frames,
    inference_batches,
    training_batches,
)
from gaitlib.data.sequence_file import SequenceError

LABELS = np.repeat(np.arange(6), [4, 4, 4, 4, 4, 2])


class Numbered:
    """Sequence i has ``lengths[i]`` frames, each filled with its own number."""

    def __init__(self, labels=LABELS, lengths=None):
        self.labels = np.asarray(labels)
        self.lengths = lengths or [3 + i % 5 for i in range(len(labels))]

    def __len__(self):
        return len(self.labels)

    def sequence(self, index):
        numbers = np.arange(self.lengths[index], dtype=np.uint8)
        return np.broadcast_to(numbers[:, None, None], (len(numbers), 2, 2))


def rng():
    return np.random.default_rng(0)


def same(one, other):
    return all(
        (a is None and b is None) or (a == b if isinstance(a, int) else torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("order", ["all_ordered", "all_unordered"])
def test_all_takes_every_frame_up_to_the_limit(order):
    assert choose_frames(7, rng(), sample_type=order).tolist() == list(range(7))
    assert choose_frames(7, rng(), sample_type=order, frames_all_limit=5).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert len(choose_frames(7, rng(), sample_type=order, frames_all_limit=9)) == 7


def test_unordered_repeats_a_frame_only_if_the_sequence_is_short():
    for seed in range(50):
        source = np.random.default_rng(seed)
        enough = choose_frames(8, source, sample_type="fixed_unordered", frames_num_fixed=8)
        assert sorted(enough) == list(range(8))
        short = choose_frames(5, source, sample_type="fixed_unordered", frames_num_fixed=8)
        assert len(short) == 8 and set(short) <= set(range(5))


def test_ordered_is_a_window_at_every_possible_place():
    starts = set()
    for seed in range(200):
        source = np.random.default_rng(seed)
        window = choose_frames(10, source, sample_type="fixed_ordered", frames_num_fixed=4)
        assert np.diff(window).tolist() == [1, 1, 1]
        starts.add(int(window[0]))
    assert starts == set(range(7))


def test_ordered_drops_the_skipped_frames_of_its_window():
    chosen = set()
    for seed in range(300):
        source = np.random.default_rng(seed)
        frames = choose_frames(
            6, source, sample_type="fixed_ordered", frames_num_fixed=3, frames_skip_num=2
        )
        assert (np.diff(frames) > 0).all() and frames[-1] - frames[0] <= 4
        chosen.add(tuple(frames.tolist()))
    windows = [range(0, 5), range(1, 6)]
    possible = {(a, b, c) for w in windows for a in w for b in w for c in w if a < b < c}
    assert chosen == possible


def test_ordered_goes_round_a_short_sequence():
    frames = choose_frames(3, rng(), sample_type="fixed_ordered", frames_num_fixed=9)
    assert frames.tolist() == [0, 1, 2] * 3
    frames = choose_frames(3, rng(), sample_type="fixed_ordered", frames_num_fixed=7)
    assert (np.diff(frames) % 3 == 1).all()


def test_allordered_sorts_the_frames_that_unordered_draws():
    for num_frames in (3, 50):
        drawn = choose_frames(num_frames, rng(), sample_type="fixed_unordered", frames_num_fixed=9)
        found = choose_frames(num_frames, rng(), sample_type="fixed_allordered", frames_num_fixed=9)
        assert found.tolist() == sorted(drawn.tolist())


def test_unfixed_draws_every_length_of_the_range():
    lengths = {
        len(
            choose_frames(
                9,
                np.random.default_rng(seed),
                sample_type="unfixed_unordered",
                frames_num_min=2,
                frames_num_max=5,
            )
        )
        for seed in range(100)
    }
    assert lengths == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"sample_type": "fixed"}, "unknown sample_type 'fixed'"),
        ({"num_frames": 0}, "0 frames"),
        ({"frames_num_fixed": 0}, "a clip of 0 frames"),
        ({"sample_type": "unfixed_ordered", "frames_num_min": 60}, "60 to 50"),
        ({"sample_type": "all_ordered", "frames_all_limit": 0}, "frames_all_limit is 0"),
    ],
)
def test_impossible_choices_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        choose_frames(**{"num_frames": 5, "rng": rng()} | arguments)


def test_a_batch_has_p_subjects_and_k_distinct_clips_of_each():
    for batch in TripletSampler(LABELS, (3, 4), seed=1, start=0, stop=40):
        indices = [index for index, _ in batch]
        subjects = LABELS[indices]
        assert list(Counter(subjects).values()) == [4, 4, 4]
        assert (subjects.reshape(3, 4) == subjects.reshape(3, 4)[:, :1]).all()
        for subject in set(subjects) - {5}:  # 5 has 2 sequences for 4 clips: they repeat
            assert len({i for i in indices if LABELS[i] == subject}) == 4


def test_every_sequence_has_the_same_chance():
    draws = Counter()
    for batch in TripletSampler(LABELS[:20], (2, 2), seed=0, start=0, stop=3000):
        draws.update(index for index, _ in batch)
    expected = 3000 * 4 / 20
    assert all(abs(draws[i] - expected) < 5 * expected**0.5 for i in range(20))


def test_shuffling_mixes_the_same_clips():
    (plain,) = TripletSampler(LABELS, (3, 4), seed=1, start=5, stop=6)
    (mixed,) = TripletSampler(LABELS, (3, 4), seed=1, start=5, stop=6, batch_shuffle=True)
    assert sorted(i for i, _ in plain) == sorted(i for i, _ in mixed)
    assert [i for i, _ in plain] != [i for i, _ in mixed]


def test_a_seed_repeats_and_a_resumed_run_continues_exactly():
    whole = list(TripletSampler(LABELS, (3, 4), seed=2, start=0, stop=10))
    assert whole == list(TripletSampler(LABELS, (3, 4), seed=2, start=0, stop=10))
    assert whole[6:] == list(TripletSampler(LABELS, (3, 4), seed=2, start=6, stop=10))
    assert whole != list(TripletSampler(LABELS, (3, 4), seed=3, start=0, stop=10))
    assert len({tuple(i for i, _ in batch) for batch in whole}) == 10


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("batch_shuffle", [False, True])
def test_ranks_share_the_batch_of_one_process(world_size, batch_shuffle):
    one = list(TripletSampler(LABELS, (3, 4), 0, 0, 5, batch_shuffle))
    ranks = [
        list(TripletSampler(LABELS, (3, 4), 0, 0, 5, batch_shuffle, rank, world_size))
        for rank in range(world_size)
    ]
    for i, batch in enumerate(one):
        slices = [rank[i] for rank in ranks]
        assert {len(s) for s in slices} == {12 // world_size}
        assert sorted(item for s in slices for item in s) == sorted(batch)


def test_a_batch_that_cannot_be_drawn_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"\[7, 2\] asks for 7 .* has 6: write \[6, 2\]"):
        TripletSampler(LABELS, (7, 2), 0, 0, 1)
    with pytest.raises(ValueError, match="no sequence"):
        TripletSampler([], (2, 2), 0, 0, 1)
    with pytest.raises(ValueError, match=r"\[3, 0\]: a batch needs"):
        TripletSampler(LABELS, (3, 0), 0, 0, 1)
    with pytest.raises(ValueError, match="rank 2 is none of the 2 processes"):
        TripletSampler(LABELS, (3, 4), 0, 0, 1, rank=2, world_size=2)


def test_a_batch_that_does_not_split_over_the_processes_names_what_would():
    with pytest.raises(ValueError) as error:
        TripletSampler(LABELS, (3, 4), 0, 0, 1, world_size=5)
    assert "trainer_cfg.sampler.batch_size [3, 4] makes 12 clips" in str(error.value)
    assert "over 5 processes: start one of 1, 2, 3, 4, 6, 12 processes" in str(error.value)
    assert "multiple of 5" in str(error.value)


def test_inference_gives_every_sequence_once_in_order():
    batches = list(InferenceSampler(10, 4))
    assert [[i for i, _ in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(InferenceSampler(10, 4)) == 3


@pytest.mark.parametrize(("num_sequences", "world_size"), [(10, 2), (13, 3), (3, 2), (0, 2)])
def test_ranks_share_the_very_batches_of_one_process(num_sequences, world_size):
    one = list(InferenceSampler(num_sequences, 4))
    samplers = [InferenceSampler(num_sequences, 4, 0, r, world_size) for r in range(world_size)]
    assert [list(s) for s in samplers] == [one[r::world_size] for r in range(world_size)]
    assert [len(s) for s in samplers] == [len(one[r::world_size]) for r in range(world_size)]
    with pytest.raises(ValueError, match="rank -1 is none"):
        InferenceSampler(num_sequences, 4, rank=-1, world_size=world_size)


def training(dataset, start=0, stop=6, **arguments):
    defaults = {"batch_size": (3, 4), "frames_num_fixed": 5, "seed": 4}
    return list(training_batches(dataset, start=start, stop=stop, **defaults | arguments))


def pieces(batch):
    """The clips of a batch, stacked or one after another."""
    if batch.seqL is None:
        return list(batch.clips)
    return batch.clips[0].split(batch.seqL.tolist())


@pytest.mark.parametrize("sample_type", ["fixed_unordered", "fixed_ordered", "unfixed_ordered"])
def test_training_clips_hold_frames_of_their_sequences(sample_type):
    dataset = Numbered()
    limits = {"frames_num_min": 2, "frames_num_max": 6}
    batches = training(dataset, sample_type=sample_type, **limits)
    assert [batch.iteration for batch in batches] == list(range(6))
    for batch in batches:
        clips = pieces(batch)
        assert len(clips) == 12 and batch.clips.dtype == torch.uint8
        lengths = {len(clip) for clip in clips}
        if sample_type.startswith("fixed"):
            assert lengths == {5} and batch.seqL is None
        else:  # a length per clip, from the whole range
            assert len(lengths) > 1 and lengths <= {2, 3, 4, 5, 6}
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.labels.tolist() == LABELS[batch.indices].tolist()
        for clip, index in zip(clips, batch.indices, strict=True):
            assert clip[:, 0, 0].max() < dataset.lengths[index]


def test_clips_of_one_sequence_differ_within_a_batch_and_between_batches():
    batches = training(Numbered([0, 1], [200, 200]), 0, 5, batch_size=(2, 3))
    clips = torch.cat([batch.clips[..., 0, 0] for batch in batches])
    assert len({tuple(clip.tolist()) for clip in clips}) == 5 * 6


@pytest.mark.parametrize("sample_type", ["fixed_unordered", "unfixed_unordered", "all_ordered"])
def test_resuming_workers_and_ranks_change_no_clip(sample_type):
    dataset = Numbered(lengths=[60] * len(LABELS))
    whole = training(dataset, sample_type=sample_type)
    resumed = training(dataset, 3, 6, sample_type=sample_type)
    assert all(same(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    if not sample_type.startswith("all"):
        for rank in (0, 1):
            part = training(dataset, sample_type=sample_type, rank=rank, world_size=2)
            for a, b in zip(whole, part, strict=True):
                assert all(map(torch.equal, pieces(a)[rank::2], pieces(b)))
                assert torch.equal(a.indices[rank::2], b.indices)


def test_loading_processes_change_no_clip():
    dataset = Numbered()
    alone, helped = training(dataset), training(dataset, num_workers=2)
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_drawing_leaves_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    training(Numbered())
    list(inference_batches(Numbered()))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_inference_clips_stand_one_after_another():
    dataset = Numbered()
    batches = list(inference_batches(dataset, batch_size=4, frames_all_limit=5))
    seen = []
    for batch in batches:
        assert batch.clips.shape == (1, int(batch.seqL.sum()), 2, 2)
        assert batch.seqL.dtype == torch.int64
        pieces = batch.clips[0, :, 0, 0].split(batch.seqL.tolist())
        for piece, index in zip(pieces, batch.indices.tolist(), strict=True):
            assert piece.tolist() == list(range(min(5, dataset.lengths[index])))
        seen += batch.indices.tolist()
    assert seen == list(range(len(dataset)))


def test_two_ranks_load_the_batches_of_one():
    one = list(inference_batches(Numbered(), batch_size=5))  # 22 sequences: 5 batches
    for rank in (0, 1):
        share = list(inference_batches(Numbered(), batch_size=5, rank=rank, world_size=2))
        assert all(same(a, b) for a, b in zip(one[rank::2], share, strict=True))
    assert list(inference_batches(Numbered(), batch_size=22, rank=1, world_size=2)) == []


def test_fixed_inference_clips_do_not_depend_on_the_batch_size():
    arguments = {"sample_type": "fixed_unordered", "frames_num_fixed": 4}
    small = [b.clips for b in inference_batches(Numbered(), batch_size=3, **arguments)]
    large = [b.clips for b in inference_batches(Numbered(), batch_size=8, **arguments)]
    assert torch.equal(torch.cat(small), torch.cat(large))


def test_subjects_with_fewer_than_k_sequences_are_one_warning(caplog):
    training(Numbered(), batch_size=(3, 4))
    (record,) = caplog.records
    assert "1 of 6 training subjects have fewer than K = 4 sequences (the fewest: 2)" in caplog.text
    assert "with replacement" in caplog.text and "batch_size[1]" in caplog.text
    caplog.clear()
    training(Numbered(), batch_size=(3, 4), rank=1, world_size=2)  # rank 0 says it for all
    training(Numbered(), batch_size=(3, 2))
    assert not caplog.records


class Fatal(Numbered):
    """Sequences whose reading kills the process, or fails, from the given index on."""

    def __init__(self, first, act):
        super().__init__()
        self.first, self.act = first, act

    def sequence(self, index):
        if index >= self.first:
            self.act()
        return super().sequence(index)


def fail():
    raise SequenceError("cannot read the sequence a.pkl: EOFError: Ran out of input")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_fails_while_loading_is_one_line(num_workers):
    with pytest.raises(SequenceError) as error:
        list(inference_batches(Fatal(0, fail), num_workers=num_workers))
    assert str(error.value) == "cannot read the sequence a.pkl: EOFError: Ran out of input"


@pytest.fixture
def quick_look(monkeypatch):
    """Look for dead processes every tenth of a second instead of every five."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def test_a_loading_process_that_is_killed_is_one_clear_error(quick_look):
    handler = signal.getsignal(signal.SIGCHLD)
    dataset = Fatal(4, partial(signal.raise_signal, signal.SIGKILL))
    batches = inference_batches(dataset, num_workers=1)
    with pytest.raises(LoaderError) as error:
        list(batches)
    assert "died by SIGKILL, most often because memory ran out" in str(error.value)
    assert "data_cfg.num_workers is 1: lower it" in str(error.value)
    assert "restore_hint: latest" in str(error.value)
    assert signal.getsignal(signal.SIGCHLD) == handler  # nothing is raised outside of next()


def test_a_loading_process_killed_from_outside_with_batches_on_the_way_is_reported_too(quick_look):
    before = set(active_children())
    batches = iter(inference_batches(Numbered(), batch_size=2, num_workers=1))
    next(batches)
    (worker,) = set(active_children()) - before
    time.sleep(0.2)  # batches lie in the queue, their memory is still the worker's to hand over
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match="SIGKILL"):
        list(batches)


def test_another_error_of_a_loading_process_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        list(inference_batches(Fatal(0, lambda: 1 / 0), num_workers=1))


def test_wrong_settings_are_refused_before_the_first_batch():
    with pytest.raises(ValueError, match="unknown sample_type"):
        training_batches(Numbered(), seed=0, start=0, stop=1, batch_size=(2, 2), sample_type="x")
    with pytest.raises(ValueError, match="is for training"):
        inference_batches(Numbered(), sample_type="unfixed_ordered")
    with pytest.raises(ValueError, match="3 labels for 22 sequences"):
        training_batches(Numbered(), [0, 1, 2], seed=0, start=0, stop=1, batch_size=(2, 2))


def test_loading_processes_outlive_the_signals_that_stop_a_run():
    settings = {"batch_size": (3, 4), "frames_num_fixed": 5, "num_workers": 1}
    batches = iter(training_batches(Numbered(), seed=4, start=0, stop=4, **settings))
    next(batches)
    (worker,) = active_children()
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
    assert [batch.iteration for batch in batches] == [1, 2, 3]
