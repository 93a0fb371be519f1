"""Do slices of a slimmable network save the time that their MACs promise? Every width against the full one, in torch.

`python examples/slices_in_time.py` makes each network with random weights, folds its BatchNorms, and lets its widths
answer the same 64 images in turn, nine times, on one thread. It takes four minutes; name networks to choose others:
`python examples/slices_in_time.py slim-resnet20-w32 us-resnet8-w64`.
"""

import sys
from collections.abc import Sequence
from functools import partial

import torch

from skipgym import Backbone, make_backbone
from skipgym.backbones.slimmable import QUARTERS, slices
from skipgym.bench.race import race

NETWORKS = ("slim-resnet20", "slim-resnet20-w64", "slim-resnet20-w128")
BATCH = 64


def answer(network: Backbone, x: torch.Tensor, times: int) -> int:
    """Let a network answer the same images so many times; returns how many images that were."""
    with torch.inference_mode():
        for _ in range(times):
            network(x)
    return times * len(x)


def compare(name: str, *, batch: int = BATCH, rounds: int = 9) -> dict[float, tuple[float, float]]:
    """Return of each width its MACs and its time, as shares of the full network's.

    Args:
        name: A slimmable backbone's.
        batch: Images in a call.
        rounds: In each, every width has its turn; times are medians of each round's ratio to the full network.
    """
    backbone = make_backbone(name)
    networks = dict(zip(QUARTERS, slices(backbone, QUARTERS), strict=True))
    x = backbone.prepare(torch.randint(256, (batch, *backbone.input_shape), dtype=torch.uint8))
    x = x.contiguous(memory_format=torch.channels_last)
    macs = {width: one.full_macs for width, one in networks.items()}
    # about as long a turn for each
    runners = {str(width): partial(answer, one, x, round(1 / width**2)) for width, one in networks.items()}
    found = race(runners, rounds)
    return {width: (macs[width] / macs[1.0], found.ratio("1.0", str(width)).median) for width in QUARTERS}


def main(names: Sequence[str]) -> None:
    """Measure these networks, or those above."""
    torch.set_num_threads(1)
    for name in names or NETWORKS:
        torch.manual_seed(0)
        for width, (macs, time) in compare(name).items():
            told = f"{name:20} width {width:4}: {macs:.3f} of the MACs, {time:.3f} of the time, {time / macs:.2f} times"
            print(told, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
