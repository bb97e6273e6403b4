"""Weights of linear layers in the layout that oneDNN multiplies by fastest, for inference on CPUs.

What `F.linear` does with a plain matrix depends on the library that torch was built with: for one row in bfloat16, a
step of talking, it reads the weights at half the speed of this layout, and for the few dozen rows of an utterance in
float32 a library tuned for other processors needs twice the time. The numbers differ from `F.linear` by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STACKED = "in_proj_weight"
"""Name of the q|k|v matrix that an attention module holds by itself instead of in a linear layer."""


class PackedWeight:
    """A packed matrix [outputs, inputs]; `F.linear` takes it in the place of a tensor, and no other function does."""

    def __init__(self, weight: Tensor) -> None:
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device
        # The layout is the same for any number of rows; 1 is what the library is told to expect.
        self.blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)

    def new_zeros(self, *shape: int) -> Tensor:
        """Zeros of the weight's type on its device, as a tensor gives them."""
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    @classmethod
    def __torch_function__(
        cls,
        function: object,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Tensor:
        if function is not F.linear:
            raise TypeError(f"{function} cannot take a packed weight, which is for F.linear alone")
        x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
        assert isinstance(weight, PackedWeight)
        return torch.ops.mkldnn._linear_pointwise(x, weight.blocks, bias, "none", [], "")  # type: ignore[no-any-return]


def pack_linears(network: nn.Module) -> None:
    """Packs the weights of all linear layers in `network` on a CPU, in place; leaves alone what oneDNN cannot take.

    They are no parameters any more: the network can compute, and not be trained, moved or saved. Each plain matrix is
    released before the next is packed, unless somebody else holds it, as an embedding table does.
    """
    for module in network.modules():
        name = "weight" if isinstance(module, nn.Linear) else STACKED
        weight = module._parameters.get(name)
        if weight is not None and weight.device.type == "cpu" and _takes(weight.dtype):
            packed = PackedWeight(weight)
            delattr(module, name)
            del weight
            setattr(module, name, packed)


def add_product(x: Tensor, y: Tensor, layer: nn.Linear) -> Tensor:
    """x + layer(y) in place of x, for a layer without bias: in one go where the weight is a plain matrix."""
    weight = layer.weight
    if isinstance(weight, PackedWeight):
        return x.add_(layer(y))
    return x.addmm_(y, weight.t())


@cache
def _takes(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies packed weights of the type."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
