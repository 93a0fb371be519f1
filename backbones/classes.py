"""Weights that know other classes than are asked for."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from .backbone import Backbone


def of_other_shape(state: Mapping[str, Tensor], backbone: Backbone) -> list[str]:
    """Return the names of weights whose shape is not a backbone's."""
    own = backbone.network.state_dict()
    return [key for key in own if key in state and own[key].shape != state[key].shape]


def knows_others(state: Mapping[str, Tensor], backbone: Backbone) -> bool:
    """Return whether weights differ from a backbone's in how many classes one layer answers with, and nowhere else."""
    own, differing = backbone.network.state_dict(), of_other_shape(state, backbone)
    alike = all(
        state[key].shape[1:] == own[key].shape[1:] and len(own[key]) == backbone.num_classes for key in differing
    )
    return alike and len({key.rpartition(".")[0] for key in differing}) == 1


def restricted(state: Mapping[str, Tensor], backbone: Backbone, indices: Sequence[int]) -> dict[str, Tensor]:
    """Return weights with the rows of some classes only in the layer that answers.

    Args:
        state: Of the same architecture with more classes.
        backbone: With as many classes as are kept.
        indices: Which outputs are kept, in the order of the backbone's classes.

    Raises:
        ValueError: If no one layer of these weights has more outputs, or the indices do not name some of them.
    """
    own, wider = backbone.network.state_dict(), of_other_shape(state, backbone)
    layers, rows = {key.rpartition(".")[0] for key in wider}, {len(state[key]) for key in wider if state[key].dim()}
    alike = all(state[key].shape[1:] == own[key].shape[1:] for key in wider)
    if len(layers) != 1 or len(rows) != 1 or not alike:
        raise ValueError(
            f"class_indices: expected weights that differ from {backbone.name} with {backbone.num_classes} classes in "
            f"the outputs of one layer, got {len(layers)} that differ. Leave them out where the classes are the same."
        )
    known = rows.pop()
    if len(indices) != backbone.num_classes or len(set(indices)) != len(indices):
        raise ValueError(
            f"class_indices: expected {backbone.num_classes} different ones, one for each class of the data, got "
            f"{len(indices)}, {len(set(indices))} of them different. Name the output of each class once, in order."
        )
    if wrong := [index for index in indices if not 0 <= index < known]:
        raise ValueError(
            f"class_indices: expected numbers of the weights' outputs, 0 … {known - 1}, got {wrong[0]}. Count from 0."
        )
    return {**state, **{key: state[key][list(indices)] for key in wider}}
