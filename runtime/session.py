"""Sessions of ONNX Runtime, and one call of them, as arrays."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import onnxruntime as ort


def open_session(content: bytes, *, threads: int) -> "ort.InferenceSession":
    """Return a session of a model on the CPU; with 0 threads the runtime says how many."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # warnings tell of shapes that a batch leaves open
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def call(
    session: "ort.InferenceSession", outputs: Sequence[str] | None, feed: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Return what a session makes of its inputs: these outputs, or all."""
    return cast("list[np.ndarray]", session.run(outputs, feed))  # none of ours gives sequences or maps
