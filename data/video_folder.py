"""Directories of videos: some frames of each decoded once, into files that are memory-mapped."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .cache import cache_dir
from .clips import evenly
from .folder import key_of, report
from .images import Part
from .listing import Listing, list_files
from .splits import Shares, Source, cut_rows
from .video import SUFFIXES, Video

MOST = 32
"""Frames of a video that are kept, evenly spread from its first to its last; of a shorter one all."""

_LARGEST_DEFAULT = 224
_CACHE_FORMAT = 1  # goes up when the same files would give other pixels
_QUIET_UP_TO = 200
_AHEAD = 16  # clips that are decoded before they are written

Files = Sequence[tuple[Path, int]]


def load_video_folder(root: Path, *, image_size: int | None) -> Source:
    """Read a directory of videos in one of the two ImageFolder layouts, as clips.

    Of each video `MOST` frames at most are decoded, and the others not; frames are resized and cropped as images are. A
    video of fewer frames than others repeats its last. The clips are kept in the cache directory until a file is added,
    removed or changed, and memory-mapped: there may be more of them than memory holds. Videos that cannot be read are
    left out with one warning.

    Args:
        root: Holds DIR/{train,test[,val]}/CLASS/* or DIR/CLASS/*, which is then split.
        image_size: Height and width in pixels; None takes the most common shorter side, at most 224.

    Raises:
        ValueError: If there are no videos, the classes of the parts differ, more than 5 % of the files cannot be read,
            no readable video of a class is left, or there is no room.
        ImportError: If the decoder is not installed.
    """
    listing = list_files(root, SUFFIXES, "videos")
    parts = _parts(root, listing)
    cache = cache_dir() / "videos" / key_of(root, listing, f"{_CACHE_FORMAT} {image_size} {MOST}")
    if not (cache / "clips.json").is_file():
        _keep(root, replace(listing, files=parts), image_size, cache)
    page = json.loads((cache / "clips.json").read_text(encoding="utf-8"))
    if page["unreadable"]:
        report(root, listing, page["unreadable"], "videos")
    return Source(
        name=root.resolve().name,
        parts={name: Part(_open(cache, name, page), torch.tensor(page["labels"][name])) for name in parts},
        class_names=listing.class_names,
        flip=True,
        note=f"{len(page['unreadable'])} unreadable files left out" if page["unreadable"] else "",
        cut=[name for name in parts if name not in listing.files],
    )


def _parts(root: Path, listing: Listing) -> dict[str, Files]:
    """Return the files of all parts: cut before they are decoded, so that each part is a file of its own."""
    given = listing.files["train"]
    labels = torch.tensor([label for _, label in given])
    rows = cut_rows(root.name, labels, listing.class_names, listing.files, Shares())
    return {**listing.files, **{name: [given[row] for row in index.tolist()] for name, index in rows.items()}}


def _keep(root: Path, listing: Listing, image_size: int | None, cache: Path) -> None:
    """Decode all clips into a directory, which appears when it is whole."""
    videos = _opened(listing.paths)
    unreadable = {_name(root, path): found for path, found in videos.items() if isinstance(found, str)}
    if unreadable:  # told before the others are decoded
        report(root, listing, unreadable, "videos")
    readable = [video for video in videos.values() if isinstance(video, Video)]
    size = image_size or _common_size(readable)
    frames = max(min(len(video), MOST) for video in readable)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache.parent))
        try:
            labels = {}
            for part, files in listing.files.items():
                shape = (len(files), frames, 3, size, size)
                labels[part], damaged = _decode(files, videos, scratch / f"{part}.u8", shape)
                unreadable |= {_name(root, path): problem for path, problem in damaged.items()}
            page = {"frames": frames, "size": size, "labels": labels, "unreadable": unreadable}
            (scratch / "clips.json").write_text(json.dumps(page), encoding="utf-8")
            if not cache.exists():
                os.replace(scratch, cache)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"Clips of {root}: expected room to keep them in {cache.parent}, got {error}. Remedy: set SKIPGYM_CACHE to "
            "a directory with room and write permission, or ask for smaller frames."
        ) from error


def _opened(paths: Sequence[Path]) -> dict[Path, Video | str]:
    """Return each video, or what is wrong with it."""

    def look(path: Path) -> Video | str:
        try:
            return Video(path)
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        quiet = len(paths) <= _QUIET_UP_TO
        found = tqdm(pool.map(look, paths), "counting frames", len(paths), disable=quiet, unit="video")
        return dict(zip(paths, found, strict=True))


def _decode(
    files: Files, videos: Mapping[Path, Video | str], target: Path, shape: tuple[int, ...]
) -> tuple[list[int], dict[Path, str]]:
    """Write the clips of a part that can be decoded; return their labels, and what is wrong with the others."""
    clips, labels, damaged = np.memmap(target, np.uint8, "w+", shape=shape), [], {}
    label_of = dict(files)

    def read(video: Video) -> Tensor | str:
        try:
            return _clip(video, shape[1], shape[-1])
        except (ValueError, OSError) as error:
            return str(error)

    known = [found for path, _ in files if isinstance(found := videos[path], Video)]
    bar = tqdm(desc="decoding", total=len(known), disable=len(known) <= _QUIET_UP_TO, unit="video")
    with ThreadPoolExecutor() as pool, bar:
        for first in range(0, len(known), _AHEAD):
            few = known[first : first + _AHEAD]
            for video, found in zip(few, pool.map(read, few), strict=True):
                bar.update()
                if isinstance(found, str):
                    damaged[video.path] = found
                    continue
                clips[len(labels)] = found.numpy()
                labels.append(label_of[video.path])
    clips.flush()
    return labels, damaged


def _clip(video: Video, frames: int, size: int) -> Tensor:
    """Return a video's frames that are kept, the last repeated. Shape (frames, 3, size, size)."""
    kept = video.frames(evenly(len(video), MOST), image_size=size)
    return torch.cat([kept, kept[-1:].expand(frames - len(kept), -1, -1, -1)])


def _open(cache: Path, part: str, page: Mapping[str, Any]) -> Tensor:
    """Return the clips of a part, memory-mapped; what is written to them never reaches the file."""
    shape = (len(page["labels"][part]), page["frames"], 3, page["size"], page["size"])
    return torch.from_numpy(np.memmap(cache / f"{part}.u8", np.uint8, "c", shape=shape))


def _common_size(videos: Sequence[Video]) -> int:
    """Return the most common shorter side, at most 224."""
    sizes = Counter(min(video.size) for video in videos)
    return min(max(sizes, key=lambda size: (sizes[size], size)), _LARGEST_DEFAULT)


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
