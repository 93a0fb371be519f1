"""Encoded videos: chosen frames are the right ones, few are decoded, and damaged files are told."""

import statistics
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from skipgym.data.video import Video

from ..videos import save_video

av = pytest.importorskip("av")


def numbers_of(pixels: torch.Tensor) -> list[int]:
    """Return which frames these are, from their grey levels."""
    return ((pixels.float().mean((1, 2, 3)) - 40) / 4).round().long().tolist()


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx"),
        ("a.mpg", "mpeg2video"),
        ("a.ts", "libx264"),
    ],
)
def test_chosen_frames_are_those_of_their_numbers(name, codec, tmp_path):
    video = Video(save_video(tmp_path / name, 45, codec=codec))
    assert len(video) == 45
    for chosen in ([0], [44], [30, 7, 7, 13], [11, 12, 13], list(range(45))):
        assert numbers_of(video.frames(chosen, image_size=8)) == chosen


def test_frames_are_resized_as_images_are(tmp_path):
    path = save_video(tmp_path / "a.mp4", 5)
    with av.open(str(path)) as container:
        image: Image.Image = list(container.decode(video=0))[3].to_image()
    expected = torch.from_numpy(np.array(ImageOps.fit(image, (20, 20), Image.Resampling.BILINEAR)))
    assert torch.equal(Video(path).frames([3], image_size=20)[0].permute(1, 2, 0), expected)
    assert Video(path).frames([3], image_size=20, channels=1).shape == (1, 1, 20, 20)


def test_only_frames_from_the_keyframe_on_are_decoded(tmp_path, monkeypatch):
    video = Video(save_video(tmp_path / "a.avi", 60, codec="mpeg4"))
    left = []
    scanned = Video._scanned
    monkeypatch.setattr(Video, "_scanned", lambda self, wanted: (left.append(wanted), scanned(self, wanted))[1])
    assert numbers_of(video.frames([14, 35], image_size=8)) == [14, 35]
    assert left == [set()]  # nothing was left to look for from the first frame on
    assert all(video._times[number] - video._key_before(number) < 12 for number in range(60))


def test_choosing_8_of_1000_frames_takes_less_than_a_tenth_of_decoding_all(tmp_path):
    """Keyframes stand at every twelfth frame, as the encoder puts them by default."""
    path = save_video(tmp_path / "long.mp4", 1000, size=(96, 64), step=1)
    chosen = [round(i * 999 / 7) for i in range(8)]
    times: dict[int, list[float]] = {8: [], 1000: []}
    for _ in range(3):
        for numbers in (chosen, range(1000)):
            begun = time.process_time()
            Video(path).frames(numbers, image_size=32)
            times[len(numbers)].append(time.process_time() - begun)
    few, everything = (statistics.median(of) for of in times.values())
    assert few < everything / 10, f"{few / everything:.3f} of the time"


def test_clip_of_one_frame(tmp_path):
    video = Video(save_video(tmp_path / "one.mp4", 1))
    assert len(video) == 1
    assert numbers_of(video.frames([0], image_size=8)) == [0]


def test_length_is_counted_where_the_header_lies(tmp_path):
    """An AVI says how many frames it has at fixed places; packets say otherwise."""
    path = save_video(tmp_path / "a.avi", 20, codec="mpeg4")
    content = bytearray(path.read_bytes())
    place = content.index(b"strh") + 8 + 32  # dwLength of the stream
    main = content.index(b"avih") + 8 + 16  # dwTotalFrames of the file
    assert int.from_bytes(content[place : place + 4], "little") == 20
    for at in (place, main):
        content[at : at + 4] = (5000).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(Video(path)) == 20


def test_truncated_file_is_told_or_as_long_as_what_is_left(tmp_path):
    whole = save_video(tmp_path / "a.mp4", 30).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # its index stood at the end
    with pytest.raises(ValueError, match=r"half\.mp4 cannot be read: expected a whole video file.*Remedy"):
        Video(tmp_path / "half.mp4")
    whole = save_video(tmp_path / "a.mkv", 60).read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    video = Video(tmp_path / "half.mkv")
    assert 0 < len(video) < 60
    assert numbers_of(video.frames([0, 5], image_size=8)) == [0, 5]


def test_damaged_frames_are_an_error(tmp_path):
    """Of each packet the beginning is left as it was, the rest is nonsense."""
    path = save_video(tmp_path / "a.avi", 40, codec="mpeg4")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for place, size in packets:
        content[place + 12 : place + size - 4] = bytes(size - 16)  # chunks' names and sizes stay
    path.write_bytes(content)
    assert len(Video(path)) == 40
    with pytest.raises(ValueError, match="cannot be read: expected a whole video file"):
        Video(path).frames([20], image_size=8)


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_what_is_no_video_is_told(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="expected a whole video file, got"):
        Video(tmp_path / "a.mp4")


def test_missing_file_and_frame_are_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "none.mp4")
    with pytest.raises(IndexError, match=r"expected frames 0 … 2, got 3"):
        Video(save_video(tmp_path / "a.mp4", 3)).frames([3], image_size=8)


def test_missing_decoder_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'skipgym\[video\]'"):
        Video(tmp_path / "a.mp4")
