"""Which modules of a model normalise and then scale by a weight: found by how they behave."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass
class Norm:
    """A normalisation: ``y = normalised(x) * (weight + offset) + bias`` along the last dimension.

    Offset 0: nn.LayerNorm, nn.RMSNorm (without a bias) and look-alikes such as transformers'
    LlamaRMSNorm. Offset 1: those whose weight starts at 0, such as Gemma's.
    """

    module: Any
    name: str
    offset: int = 0
    reason: str | None = None  # why nothing can be folded into it

    @property
    def parameters(self) -> list[nn.Parameter]:
        found = self.module._parameters.get("weight"), self.module._parameters.get("bias")
        return [parameter for parameter in found if parameter is not None]

    @torch.no_grad()
    def divided(self, scale: Tensor) -> list[Tensor]:
        """What weight and bias must be for outputs divided by ``scale``, float32 [channels]."""
        weight, *bias = (parameter.float() for parameter in self.parameters)
        divided = [(weight + self.offset) / scale - self.offset, *(b / scale for b in bias)]
        return [new.to(old.dtype) for new, old in zip(divided, self.parameters, strict=True)]

    @torch.no_grad()
    def assign(self, values: list[Tensor]) -> None:
        """Writes weight and bias, in place."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def find_norms(model: nn.Module) -> list[Norm]:
    """Every norm below `model`; those that are one by name alone have a reason."""
    norms = []
    for name, module in model.named_modules():
        if not name:
            continue
        norm = Norm(module, name)
        norm.reason = _why_not_plain(module) or _probe(norm)
        if norm.reason is None or "norm" in type(module).__name__.lower():
            norms.append(norm)
    return norms


def _why_not_plain(module: nn.Module) -> str | None:
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    weight = parameters.get("weight")
    if module._modules:
        return "it holds other modules"
    if weight is None:
        return "it has no weight"
    more = parameters.keys() - {"weight", "bias"}
    if more:
        return f"it holds more than a weight and a bias: {', '.join(sorted(more))}"
    if is_lazy(weight) or weight.is_meta:
        return "its weight has no values yet"
    if weight.dim() != 1 or not weight.is_floating_point():
        return f"its weight is {weight.dtype} of shape {list(weight.shape)}, not a float vector"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return None


def _probe(norm: Norm) -> str | None:
    """Sets `norm.offset`: doubles and halves channels in a float32 copy, and looks at the outputs.

    The factors are powers of two, so that the outputs follow exactly but for the offset.
    """
    size = norm.module.weight.shape[0]
    device = norm.module.weight.device
    x = torch.randn(1, 2, size, generator=torch.Generator().manual_seed(0)).to(device)
    factor = torch.tensor([0.5, 2.0], device=device).repeat(size // 2 + 1)[:size]
    try:
        twin = copy.deepcopy(norm.module).float().eval()
        with torch.no_grad():
            want = twin.forward(x) * factor
            for offset in (0, 1):
                scaled = Norm(copy.deepcopy(twin), norm.name, offset)
                scaled.assign(scaled.divided(1 / factor))
                got = scaled.module.forward(x)
                if torch.allclose(got, want, rtol=1e-4, atol=1e-6 * float(want.abs().max())):
                    norm.offset = offset
                    return None
    except Exception as error:  # whatever a module that is no norm makes of x
        return f"it does not take a float tensor [..., {size}]: {str(error).splitlines()[0]}"
    return "its output does not follow its weight along the last dimension"
