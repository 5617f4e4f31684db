"""Layers that multiply by a matrix, whichever way round they hold it: nn.Linear and Conv1D."""

from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D (GPT-2): ``x @ weight + bias``, its weight [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def output_dim(module: nn.Module) -> int:
    """The dimension of the weight that counts outputs; the other one counts inputs."""
    return 1 if is_conv1d(module) else 0


def outputs_first(module: nn.Module, weight: Tensor) -> Tensor:
    """A view [out, in] of the weight, or of anything of its shape."""
    return weight.T if is_conv1d(module) else weight


def set_sizes(module: nn.Module) -> None:
    """Makes the layer's own numbers those of its weight."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    names = ("nf", "nx") if is_conv1d(module) else ("out_features", "in_features")
    for name, size in zip(names, outputs_first(module, weight).shape, strict=True):
        setattr(module, name, size)


def linear_of(
    weight: Tensor, bias: Tensor | None, weight_trains: bool, bias_trains: bool, copy: bool
) -> nn.Linear:
    """An nn.Linear with these numbers, weight [out, in].

    weight_trains, bias_trains: whether they require a gradient. copy: False lets the layer share
    their memory; tensors made under torch.inference_mode can then require none.
    """

    def parameter(values: Tensor, trains: bool) -> nn.Parameter:
        values = values.detach().clone() if copy else values.detach()
        return nn.Parameter(values, trains and not values.is_inference())

    made = nn.Linear(1, 1, bias is not None, device="meta")
    made.out_features, made.in_features = weight.shape
    made.weight = parameter(weight, weight_trains)
    if bias is not None:
        made.bias = parameter(bias, bias_trains)
    return made
