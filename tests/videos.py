"""Videos for tests: frame i of each is grey of level 40 + 4i: so a frame tells its number."""

from pathlib import Path

import numpy as np


def save_video(
    path: Path, frames: int, *, size: tuple[int, int] = (48, 32), codec: str = "libx264", gop: int = 12, step: int = 4
) -> Path:
    """Write a video of so many frames, width x height, with a keyframe each `gop` frames."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.bit_rate = gop, 4_000_000
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), level(number, step), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def level(number: int, step: int = 4) -> int:
    """Return the grey level of a frame."""
    return 40 + number * step % 200
