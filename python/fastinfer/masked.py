"""Masks that stand on the weights of linear layers, and what they leave when they are taken off."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastinfer.sparsity import Structure

_STRUCTURE = "pruned_to"  # attribute of a layer whose mask was taken off


class Sparsity(NamedTuple):
    """How a layer was pruned. mask: bool [out_features, in_features], True where weights stay."""

    structure: Structure
    mask: Tensor


class Mask(nn.Module):
    """A parametrisation of torch.nn.utils.parametrize: the weight where `mask` is True, else +0.

    No gradient flows into what is masked. What an optimizer writes there (momentum from before)
    does not show.
    """

    mask: Tensor

    def __init__(self, structure: Structure, mask: Tensor) -> None:
        super().__init__()
        self.structure = structure
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0)

    def extra_repr(self) -> str:
        return self.structure.label


def mask_of(module: nn.Module) -> Mask | None:
    """The mask that stands on the weight of `module`, if its weight has that parametrisation alone.

    A module is parametrised in no other way if this is not None.
    """
    if not parametrize.is_parametrized(module):
        return None
    lists: Any = module.parametrizations
    if list(lists) == ["weight"] and len(lists.weight) == 1 and isinstance(lists.weight[0], Mask):
        return lists.weight[0]
    return None


def parameter_of(linear: nn.Linear) -> Tensor:
    """The parameter that an optimizer holds: the weight, or what is under its mask."""
    if mask_of(linear) is None:
        return linear.weight
    lists: Any = linear.parametrizations
    return lists.weight.original


def set_mask_(
    linear: nn.Linear, structure: Structure, mask: Tensor, weight: Tensor | None = None
) -> None:
    """Puts a mask on a layer, in place of the one it may have.

    weight: [out_features, in_features], what the layer's weight is to be; as it is if None. The
    parameter stays the same object, so an optimizer need not be told.
    """
    present = linear.weight.detach() if weight is None else weight
    pruned = torch.where(mask, present, 0)
    held = mask_of(linear)
    if held is None:
        parametrize.register_parametrization(linear, "weight", Mask(structure, mask))
    else:
        held.structure, held.mask = structure, mask
    with torch.no_grad():
        parameter_of(linear).copy_(pruned)


def sparsity_of(linear: nn.Linear) -> Sparsity | None:
    """The structure and the mask of a layer that `prune_` has pruned; None of another.

    After `finalize_pruning_` the mask is the least one of the structure that keeps every weight
    that is not zero. Raises ValueError if the weights no longer have that structure, which comes of
    training them without the mask.
    """
    held = mask_of(linear)
    if held is not None:
        return Sparsity(held.structure, held.mask)
    structure: Structure | None = vars(linear).get(_STRUCTURE)
    if structure is None:
        return None
    mask = structure.cover(linear.weight.detach() != 0)
    structure.check(mask, "linear")
    return Sparsity(structure, mask)


@torch.no_grad()
def finalize_pruning_(model: nn.Module) -> int:
    """Takes the masks of `prune_` off: the weights are plain parameters again, zeros and all.

    model: pruned layers in it are changed in place, and it too if it is one; the parameters stay
    the same objects, and the state dict has its usual names. Nothing holds the zeros at zero from
    now on. Returns the number of layers. `sparsity_of` still tells their structure.

    Raises TypeError if `model` is no module; ValueError, naming the layer, if a mask does not have
    its structure (loaded from elsewhere); the model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    masked = [(name, m, held) for name, m in model.named_modules() if (held := mask_of(m))]
    for name, _, held in masked:
        held.structure.check(held.mask, name or "model")
    for _, linear, held in masked:
        assert isinstance(linear, nn.Linear)
        parameter_of(linear).copy_(linear.weight)
        # torch takes `weight` off the class, which a deepcopy of the layer shares: one for this one
        kind: Any = type(linear)
        linear.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
        linear.register_parameter("bias", linear._parameters.pop("bias"))  # after the weight again
        setattr(linear, _STRUCTURE, held.structure)
    return len(masked)
