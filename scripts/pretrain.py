"""`skipgym pretrain`: train a (skip-robust) backbone."""

import tyro

from ..backbones.pretrain import pretrain
from ..backbones.recipe import PretrainConfig


def main(arguments: list[str]) -> int:
    """Train a backbone, or resume; `RUN/backbone.safetensors` is what `--weights` takes."""
    pretrain(tyro.cli(PretrainConfig, args=arguments, prog="skipgym pretrain"))
    return 0
