"""Whether a module is what torch makes of its class and no more, so that another may replace it."""

import torch
from torch import nn

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def why_not_plain(module: nn.Module, kind: type[nn.Module], *names: str) -> str | None:
    """Why ``module`` is no plain ``kind`` with float parameters of these ``names`` alone, the first
    of them its weight; None if it is."""
    expected = f"nn.{kind.__name__}"
    if type(module) is not kind:
        name = type(module).__name__
        if isinstance(module, kind):
            return f"it is a {name}, a subclass of {expected}"
        return f"it is a {name}, not an {expected}"
    changed = why_changed(module)
    if changed is not None:
        return changed
    extras = [*module._modules, *module._buffers, *module._parameters.keys() - set(names)]
    if extras:
        return f"it holds more than a {' and a '.join(names)}: {', '.join(extras)}"
    weight = module._parameters[names[0]]
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not a plain parameter"
    if weight.dtype not in FLOATS:
        return f"its weight has dtype {weight.dtype}, not float32, bfloat16 or float16"
    return None


def why_changed(module: nn.Module) -> str | None:
    """How a module does more than its class: it has hooks or a forward of its own; else None."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        module._state_dict_hooks,
        module._state_dict_pre_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    )
    if any(hooks):
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return None
