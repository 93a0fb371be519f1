"""What a piece of a network costs, counted by torch itself."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision  # noqa: F401 (brings its operators)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
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


def _deformable_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Return 2 x the MACs of a deformable convolution: the convolution's, and 4 for each value that it samples.

    At each place of the output each input channel is sampled once for each place of the kernel, between four pixels.
    Modulation (one product for each value) is element-wise and free.
    """
    kernel, places = weight[2] * weight[3], out_shape[0] * out_shape[2] * out_shape[3]
    return 2 * places * kernel * (weight[0] * weight[1] + 4 * x[1])


_FORMULAS = {torch.ops.torchvision.deform_conv2d: _deformable_flops}


class _Uncounted(TorchDispatchMode):
    """Notes operators that do real work but that torch's counter passes over in silence."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        known = getattr(func, "overloadpacket", func) in _FORMULAS  # operators of higher order have none
        if not known and any(word in name for word in ("rnn", "lstm", "gru", "deform_conv", "fft")):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def count_macs(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Return the multiply-accumulates of one call, per row of the first input.

    Convolutions, matrix products and attention count, and so does what a deformable convolution samples; element-wise
    work (activations, BatchNorm, pooling, padding) does not, as is the custom of the field. torch counts 2 FLOPs for a
    multiply-accumulate.

    Raises:
        ValueError: If an operator is called whose work torch does not count, such as a fused LSTM.
    """
    counting = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with torch.no_grad(), _countable_attention(), _Uncounted() as uncounted, counting as counter:
        function(*inputs)
    if uncounted.found:
        raise ValueError(
            f"cost: expected operators that torch can count, got {', '.join(sorted(uncounted.found))}. "
            "Use modules that are made of convolutions and matrix products (LSTMCell instead of LSTM)."
        )
    return counter.get_total_flops() // 2 // len(inputs[0])
