"""One call of a session, as arrays."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime as ort


def call(
    session: "ort.InferenceSession", outputs: Sequence[str] | None, feed: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Return what a session makes of its inputs: these outputs, or all."""
    return [np.asarray(one) for one in session.run(outputs, feed)]
