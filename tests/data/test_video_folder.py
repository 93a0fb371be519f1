"""Directories of videos: clips of any length and size, few frames decoded, damaged files told before work starts."""

import warnings

import pytest
import torch

from skipgym.data import load, video_folder
from skipgym.data.clips import clip_lengths, evenly

from ..videos import level, save_video

pytest.importorskip("av")


@pytest.fixture
def save(tmp_path):
    """Return a function that writes videos of so many frames into each class directory."""

    def write(*classes: str, lengths=(6,) * 5, sizes=((24, 16),), suffix=".mp4"):
        for name in classes:
            for number, length in enumerate(lengths):
                path = tmp_path / "films" / name / f"{number:02}{suffix}"
                save_video(path, length, size=sizes[number % len(sizes)])
        return tmp_path / "films"

    return write


def test_layout_is_split_into_clips(save):
    data = load(save("nod", "shake", lengths=(6,) * 8))
    assert (data.name, data.class_names, data.is_clips) == ("films", ("nod", "shake"), True)
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [8, 2, 2, 4]
    assert data.train.images.shape[1:] == (6, 3, 16, 16)
    assert data.note.startswith("cut from train by class")


def test_given_parts_are_kept(save):
    save("train/nod", "train/shake", lengths=(4,) * 4)
    data = load(save("test/nod", "test/shake", lengths=(4,)))
    assert len(data.test) == 2
    assert data.note.startswith("test as published; cut from train by class, seed 0: val 10%, policy 10%")


def test_clips_of_different_length_and_size_are_one_batch(save):
    data = load(save("nod", "shake", lengths=(1, 3, 6, 9), sizes=((24, 16), (16, 32))), image_size=12)
    parts = [data.part(name).images for name in ("train", "policy", "val", "test")]
    clips = torch.cat(parts)
    assert clips.shape == (8, 9, 3, 12, 12)
    assert sorted(clip_lengths(clips).tolist()) == [1, 1, 3, 3, 6, 6, 9, 9]


def test_of_long_videos_evenly_spread_frames_are_kept(save, monkeypatch):
    monkeypatch.setattr(video_folder, "MOST", 4)
    data = load(save("nod", "shake", lengths=(30,) * 4))
    levels = data.train.images[0].float().mean((1, 2, 3))
    assert evenly(30, 4) == [0, 10, 19, 29]
    assert (levels - torch.tensor([float(level(number)) for number in evenly(30, 4)])).abs().max() < 3


def test_files_are_decoded_once_and_mapped(save, monkeypatch):
    root = save("nod", "shake")
    before = load(root)
    monkeypatch.setattr(video_folder, "_decode", None)
    after = load(root)
    assert before.fingerprint == after.fingerprint
    after.train.images[0] = 0  # nothing that is written reaches the file
    assert load(root).fingerprint == before.fingerprint


def test_few_damaged_files_are_left_out_with_a_warning(save):
    root = save("nod", "shake", lengths=(2,) * 14)
    (root / "nod" / "03.mp4").write_bytes(b"no video")
    with pytest.warns(UserWarning, match=r"1 of 28 files .* no readable videos: nod/03\.mp4 .*They are left out"):
        data = load(root)
    assert sum(len(data.part(name)) for name in ("train", "policy", "val", "test")) == 27


def test_many_damaged_files_are_an_error_before_any_is_decoded(save, monkeypatch):
    root = save("nod", "shake")
    whole = (root / "nod" / "03.mp4").read_bytes()
    (root / "nod" / "03.mp4").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(video_folder, "_decode", None)
    with pytest.raises(ValueError, match=r"1 of 10 files .*Expected at most 5%.*Remedy"):
        load(root)


def test_missing_labels_are_an_error(save, tmp_path):
    save_video(tmp_path / "films" / "loose.mp4", 2)
    with pytest.raises(ValueError, match=r"No .* in .*films"):
        load(tmp_path / "films")
    save("nod")
    with pytest.raises(ValueError, match="too few classes"):
        load(tmp_path / "films")


def test_class_of_too_few_videos_is_told_before_any_is_decoded(save, monkeypatch):
    monkeypatch.setattr(video_folder, "_decode", None)
    with pytest.raises(ValueError, match="too few training images"):
        load(save("nod", "shake", lengths=(2, 2)))


def test_no_room_is_told(save, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_folder, "_decode", full)
    with pytest.raises(ValueError, match="expected room .* No space left .*SKIPGYM_CACHE"):
        load(save("nod", "shake"))


def test_nothing_is_warned_of_sound_files(save):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(save("nod", "shake"))
