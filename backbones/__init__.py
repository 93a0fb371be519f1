"""Frozen networks cut where a decision can fall, and what each piece costs."""

from .backbone import Backbone, Block
from .cost import count_macs
from .registry import backbone_names, load_backbone, make_backbone, register_backbone
from .routing import route
from .wrap import wrap

__all__ = [
    "Backbone",
    "Block",
    "backbone_names",
    "count_macs",
    "load_backbone",
    "make_backbone",
    "register_backbone",
    "route",
    "wrap",
]
