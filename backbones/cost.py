"""What a piece of a network costs, counted by torch itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Keep attention off its fused kernels, which the counter cannot see into on every device."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def count_macs(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Return the multiply-accumulates of one call, per row of the first input.

    Convolutions, matrix products and attention count; element-wise work (activations, BatchNorm, pooling, padding)
    does not, as is the custom of the field. torch counts 2 FLOPs for a multiply-accumulate.
    """
    with torch.no_grad(), _countable_attention(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops() // 2 // len(inputs[0])
