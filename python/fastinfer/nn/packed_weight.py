"""PackedWeight: an int8 weight, its scales, and what they need where they go."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastinfer import ops
from fastinfer.ops._common import WHY_NO_CUDA


class PackedWeight(nn.Module):
    """A module with an int8 weight ``[N, K]`` in a packed layout and a float32 scale a row.

    Casts leave both as they are; the weight is packed anew where it comes to a GPU or leaves one,
    and where it is read from a file that the other kind of device wrote. What subclasses say of it
    is its shape, and how their operator is called.
    """

    weight_packed: Tensor
    weight_scale: Tensor

    def _make_weight(self, device: torch.device | str | None) -> None:
        """The buffers, empty."""
        n, k = self._weight_shape
        # Zeros carry no header, so an empty layer cannot pass for a filled one.
        packed = torch.zeros(ops.packed_bytes(n, k), dtype=torch.uint8, device=device)
        # Of the weight when it comes back from a GPU as "cuda"; "cuda_sp24" becomes "sp24".
        self.host_layout: ops.Layout = "dense"
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", torch.zeros(n, dtype=torch.float32, device=device))

    @property
    def _weight_shape(self) -> tuple[int, int]:
        """N, K."""
        raise NotImplementedError

    def _try_weight(self, packed: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """Calls the operator, which checks its weight, on no input: it costs nothing."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """The weight as the layer uses it: float32 ``[N, K]``, a new tensor.

        Raises:
            ValueError: the layer is empty.
        """
        weight = ops.unpack_w8(self.weight_packed, *self._weight_shape)
        return weight * self.weight_scale[:, None]

    @property
    def layout(self) -> ops.Layout | None:
        """How the weight is stored, see :func:`fastinfer.ops.pack_w8`; None of an empty layer."""
        return ops.layout_of(self.weight_packed)

    def _check_not_empty(self) -> None:
        if not self.weight_packed.is_meta and not self.weight_packed[:8].any():
            raise ValueError(
                f"{type(self).__name__}: the layer is empty, want weights: load a state_dict into "
                "it"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Lets moves through and keeps the dtypes: rounded scales would change the results. The
        weight of a layer that comes to a GPU, or leaves one, is packed anew for where it goes."""

        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        here = self.weight_packed.device
        there = fn(self.weight_packed.new_empty(0)).device
        if here.type == "cpu" and there.type == "cuda" and WHY_NO_CUDA:
            raise RuntimeError(f"{type(self).__name__}: cannot move to {there}: {WHY_NO_CUDA}")
        if here.type == "cpu" and there.type != "meta":
            self.weight_packed = self._packed_for(there, self.weight_packed)
        super()._apply(move, recurse)
        if here.type == "cuda" and there.type == "cpu":
            self.weight_packed = self._packed_for(there, self.weight_packed)
        return self

    def _packed_for(self, device: torch.device, packed: Tensor) -> Tensor:
        """A packed weight, on the CPU, in the layout that ``device`` wants; else as it is."""
        layout, to_gpu = ops.layout_of(packed), device.type == "cuda"
        if layout is None:
            if packed[:8].any():  # not an empty layer's, and nothing that can be packed anew
                return packed
            want: ops.Layout = "cuda" if to_gpu else "dense"
            return packed.new_zeros(ops.packed_bytes(*self._weight_shape, want))
        if to_gpu and layout not in ops.CUDA_LAYOUTS:
            if layout != "sp24":
                self.host_layout = layout
            return ops.repack_w8(packed, layout_on_cuda(layout))
        if not to_gpu and layout in ops.CUDA_LAYOUTS:
            return ops.repack_w8(packed, "sp24" if layout == "cuda_sp24" else self.host_layout)
        return packed

    def _at_home_on(self, device: torch.device, packed: Tensor) -> Tensor:
        """A packed weight that will lie on ``device``, packed anew if it is in another's layout:
        it may have been saved by one and read by the other."""
        if not _is_foreign(packed, device):
            return packed
        return self._packed_for(device, packed.cpu()).to(packed.device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        packed = self._buffers["weight_packed"]
        if type(packed) is Tensor and not packed.is_meta:
            self._buffers["weight_packed"] = self._at_home_on(packed.device, packed)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        problem = self._why_not_loadable(state_dict, prefix)
        if problem is not None:  # refused as a whole, strict or not
            error_msgs.append(problem)
            return
        packed = state_dict.get(f"{prefix}weight_packed")
        if packed is not None and not packed.is_meta:
            assigned = local_metadata.get("assign_to_params_buffers", False)
            device = packed.device if assigned else self.weight_packed.device
            packed = self._at_home_on(device, packed)
            state_dict[f"{prefix}weight_packed"] = packed
        if packed is not None and packed.shape != self.weight_packed.shape:  # of another layout
            self.weight_packed = self.weight_packed.new_empty(packed.shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _why_not_loadable(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        if f"{prefix}weight" in state_dict:
            return (
                f"{prefix}weight is the weight of a float layer, want {prefix}weight_packed and "
                f"{prefix}weight_scale: load the checkpoint into the float model first, then "
                "quantise that"
            )
        packed = state_dict.get(f"{prefix}weight_packed")
        scale = state_dict.get(f"{prefix}weight_scale")
        bias = state_dict.get(f"{prefix}bias")
        if packed is None and scale is None:
            return None
        if packed is None or scale is None:
            missing = "weight_packed" if packed is None else "weight_scale"
            return f"{prefix}{missing} is missing, want it beside its partner"
        n, _ = self._weight_shape
        if scale.shape != (n,):
            return f"{prefix}weight_scale has shape {list(scale.shape)}, want [{n}]"
        try:
            if _is_foreign(packed, packed.device):
                packed, scale = ops.repack_w8(packed.cpu(), "dense"), scale.cpu()
                bias = None if bias is None else bias.cpu()
            self._try_weight(packed, scale, bias)
        except (TypeError, ValueError) as error:
            names = ("weight_packed", "weight_scale", "bias")
            held = ", ".join(prefix + name for name in names if name in self._buffers)
            return f"{held}: {error}"
        return None


def layout_on_cuda(layout: ops.Layout) -> ops.Layout:
    """What a weight of a layout of CPUs becomes on CUDA."""
    return "cuda_sp24" if layout == "sp24" else "cuda"


def _is_foreign(packed: Tensor, device: torch.device) -> bool:
    """Whether a packed weight is in a layout that ``device`` does not read."""
    layout = ops.layout_of(packed)
    return layout is not None and (layout in ops.CUDA_LAYOUTS) != (device.type == "cuda")
