"""What a backbone carries beside its network, exits, a reader, smaller networks, as a saved controller holds it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .backbone import Backbone
from .exits import build_exits, describe_exits, exit_tensors
from .reader import build_reader, reader_tensors
from .registry import load_state, make_backbone


def carried_tensors(backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """Return all weights, in files: `backbone`, and what there is of `exits`, `reader`, `smaller-0`, `smaller-1`, …."""
    networks = {"backbone": backbone, **{f"smaller-{i}": one for i, one in enumerate(backbone.smaller)}}
    files = {
        name: {key: value.contiguous() for key, value in one.network.state_dict().items()}
        for name, one in networks.items()
    }
    if backbone.added_exits:
        files["exits"] = exit_tensors(backbone.added_exits)
    if backbone.reader is not None:
        files["reader"] = reader_tensors(backbone.reader)
    return files


def describe_carried(backbone: Backbone) -> dict[str, Any]:
    """Return how to build what a backbone carries (JSON); nothing where it carries nothing.

    Raises:
        ValueError: If a smaller network is not one of the registry's, so that it could not be built again.
    """
    if unknown := [one.name for one in backbone.smaller if not one.config]:
        raise ValueError(
            f"smaller networks: expected registered ones, got {', '.join(unknown)}, which a controller could not build "
            "again. Register it with skipgym.backbones.register_backbone."
        )
    described: dict[str, Any] = {}
    if backbone.added_exits:
        described["exits"] = describe_exits(backbone.added_exits)
    if backbone.reader is not None:
        described["reader"] = backbone.reader.config
    if backbone.smaller:
        described["smaller"] = [one.config for one in backbone.smaller]
    return described


def with_carried(
    backbone: Backbone, described: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], source: str
) -> Backbone:
    """Return a backbone that carries what was described.

    Args:
        backbone: With its weights.
        described: Holds what `describe_carried` gave.
        tensors: Of each file, by its name.
        source: Where they come from, for errors.

    Raises:
        ValueError: If weights and descriptions do not fit.
    """
    if "exits" in described:
        shapes = [block.out_shape for block in backbone.blocks]
        state = tensors["exits.safetensors"]
        backbone = backbone.with_exits(build_exits(described["exits"], state, shapes, backbone.num_classes))
    if "reader" in described:
        backbone = backbone.with_reader(build_reader(described["reader"], tensors["reader.safetensors"]))
    smaller = []
    for index, config in enumerate(described.get("smaller", [])):
        smaller.append(make_backbone(**config))
        load_state(smaller[-1], dict(tensors[f"smaller-{index}.safetensors"]), source)
    return backbone.with_smaller(smaller) if smaller else backbone
