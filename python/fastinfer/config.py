"""What `quantize_` can do to a layer, one small frozen dataclass a scheme."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights and int8 activations, the activations quantised as they arrive.

    Weights: symmetric int8 with one float32 scale per output channel, fixed when the model is
    quantised. Activations: int8 around a float32 offset, with one float32 scale, per token (a row
    of the layer's input): ``x ~= scale * q + offset``, the offset halfway between the row's least
    and greatest element. Both are measured on every call, so nothing needs calibrating. Sums are
    exact in int32; the output has the input's dtype.

    Source of the method: LLM.int8(), Dettmers et al. 2022 (https://arxiv.org/abs/2208.07339),
    there called vector-wise quantisation; here with the offset, and without its float path for
    outlier channels.
    """

    @property
    def label(self) -> str:
        """The scheme's name in a summary."""
        return "int8 dynamic"
