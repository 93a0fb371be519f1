"""A timm network as a backbone: name its blocks, and every task takes it. Needs `pip install timm`.

`python examples/timm_backbone.py` cuts a ConvNeXt at the blocks of its stages and checks dropping them.
With `pretrained=True` timm loads its weights; normalise as they were trained: `timm.data.resolve_model_data_config`.
"""

import timm
import torch

from skipgym import Backbone, wrap
from skipgym.envs import BlockDrop
from skipgym.testing import check_task


def convnext(num_classes: int = 10, size: int = 64, pretrained: bool = False) -> Backbone:
    """Return timm's smallest ConvNeXt, with all blocks of its stages free to be left out."""
    network = timm.create_model("convnext_atto", pretrained=pretrained, num_classes=num_classes)
    config = timm.data.resolve_model_data_config(network)
    blocks = [name for name, module in network.named_modules() if type(module).__name__ == "ConvNeXtBlock"]
    return wrap(
        network, blocks, input_shape=(3, size, size), name="convnext_atto", mean=config["mean"], std=config["std"]
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    backbone = convnext()
    saved = 1 - backbone.least_macs / backbone.full_macs
    print(f"{len(backbone.blocks)} blocks can be skipped, with {saved:.0%} of the MACs")
    print(check_task(BlockDrop(backbone), count=3, tables=1))
