"""A torchvision network as a backbone: name its blocks, and every task takes it.

`python examples/torchvision_backbone.py` cuts a MobileNetV2 at its residual blocks and checks layer skipping on it.
Give it trained weights (`weights="DEFAULT"`) and data of that size to train a policy.
"""

import torch
import torchvision

from skipgym import Backbone, wrap
from skipgym.envs import LayerSkip
from skipgym.testing import check_task


def mobilenet(num_classes: int = 10, size: int = 64, weights: str | None = None) -> Backbone:
    """Return a MobileNetV2 that may leave out the inverted residuals whose input and output have one shape."""
    network = torchvision.models.mobilenet_v2(num_classes=num_classes, weights=weights)
    residual = torchvision.models.mobilenetv2.InvertedResidual
    blocks = [
        name for name, module in network.named_modules() if isinstance(module, residual) and module.use_res_connect
    ]
    return wrap(network, blocks, input_shape=(3, size, size), name="mobilenet_v2")


if __name__ == "__main__":
    torch.manual_seed(0)
    backbone = mobilenet()
    saved = 1 - backbone.least_macs / backbone.full_macs
    print(f"{len(backbone.blocks)} blocks can be skipped, with {saved:.0%} of the MACs")
    print(check_task(LayerSkip(backbone), count=3, tables=1))
