"""Encoded videos: how many frames there are, and any of them, without decoding the others."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decode import fitted

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})


class Video:
    """A video file, whose frames are decoded when they are asked for.

    To know how many frames there are, and when, the file's packets are read, and none is decoded: what its header says
    of them may lie. A frame is found by decoding forward from the keyframe before it, so that few chosen ones cost
    little where keyframes are frequent.

    Args:
        path: The file.

    Attributes:
        path: The file.
        size: Width and height in pixels, as encoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no video, or has no frames.
        ImportError: If the decoder is not installed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._open() as (container, stream):
            self.size: tuple[int, int] = (stream.width, stream.height)
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if not packets:
            raise ValueError(_unreadable(self.path, "no frames"))
        times = [packet.pts for packet in packets]
        self._count = len(packets)
        known = None not in times and len(set(times)) == len(times)  # else frames can only be counted from the first
        self._times: list[int] = sorted(times) if known else []
        self._keys = sorted(packet.pts for packet in packets if packet.is_keyframe) if known else []

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    def frames(self, numbers: Sequence[int], *, image_size: int, channels: int = 3) -> Tensor:
        """Return some frames, upright, shorter side resized, centre cropped.

        Args:
            numbers: Of the frames, from 0, in any order; one may come again.
            image_size: Height and width of the result in pixels.
            channels: 3 for RGB, 1 for grey.

        Returns:
            Shape (numbers, channels, image_size, image_size), uint8.

        Raises:
            IndexError: If there is no such frame.
            ValueError: If one cannot be decoded.
        """
        if wrong := [number for number in numbers if not 0 <= number < len(self)]:
            raise IndexError(f"{self.path}: expected frames 0 … {len(self) - 1}, got {wrong[0]}.")
        wanted = sorted(set(numbers))
        found = self._sought(wanted) if self._times else {}
        found |= self._scanned(set(wanted) - set(found))
        if missing := sorted(set(wanted) - set(found)):
            raise ValueError(_unreadable(self.path, f"no frame {missing[0]} of {len(self)}, damaged or truncated"))
        mode = "RGB" if channels == 3 else "L"
        pixels = {number: fitted(_upright(frame).convert(mode), image_size) for number, frame in found.items()}
        return torch.from_numpy(np.stack([pixels[number] for number in numbers]))

    def _sought(self, wanted: list[int]) -> dict[int, Any]:
        """Return frames by their numbers, each found from the keyframe before it.

        Files without an index may be entered too late: what is not met is left out.
        """
        found = {}
        with self._open() as (container, stream):
            for key, numbers in groupby(wanted, self._key_before):
                left = {self._times[number]: number for number in numbers}
                last = max(left)
                container.seek(key, stream=stream)
                for frame in container.decode(stream):
                    if frame.pts in left and not frame.is_corrupt:
                        found[left[frame.pts]] = frame
                    if frame.pts is None or frame.pts >= last:
                        break
        return found

    def _scanned(self, wanted: set[int]) -> dict[int, Any]:
        """Return frames by their numbers, decoding from the first on."""
        found, numbers = {}, {time: number for number, time in enumerate(self._times)}
        if not wanted:
            return found
        with self._open() as (container, stream):
            for count, frame in enumerate(container.decode(stream)):
                number = numbers.get(frame.pts) if numbers else count
                if number in wanted and not frame.is_corrupt:
                    found[number] = frame
                if len(found) == len(wanted):
                    break
        return found

    def _key_before(self, number: int) -> int:
        """Return when the last keyframe up to a frame is."""
        place = bisect_right(self._keys, self._times[number])
        return self._keys[place - 1] if place else self._times[0]

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """Give the container and its first video stream."""
        av = _decoder()
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(_unreadable(self.path, "no video stream"))
                yield container, container.streams.video[0]
        except FileNotFoundError:
            raise
        except av.FFmpegError as error:
            raise ValueError(_unreadable(self.path, error)) from error


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _decoder() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "video files: expected the decoder PyAV, got none. Install it: pip install 'skipgym[video]'."
        ) from error
    return av


def _unreadable(path: Path, why: object) -> str:
    return f"{path} cannot be read: expected a whole video file, got: {why}. Remedy: replace or delete it."
