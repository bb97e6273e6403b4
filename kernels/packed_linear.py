"""Weights of linear layers in the layout that oneDNN multiplies by fastest, for inference on CPUs.

What `F.linear` does with a plain matrix depends on the library that torch was built with: for one row in bfloat16, a
step of talking, it reads the weights at half the speed of this layout, and for the few dozen rows of an utterance in
float32 a library tuned for other processors needs twice the time. The numbers differ from `F.linear` by rounding alone.

A step of a small network in float32 waits for its weights most of all. `products` rounds them, and what they are
multiplied by, to bfloat16: half as much to read, and everything between the products stays as exact as it was.
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
    """A packed matrix [outputs, inputs]; `F.linear` takes it in the place of a tensor, and no other function does.

    products: the type that is multiplied in, if it is not the weight's own, which goes in and comes out.
    """

    def __init__(self, weight: Tensor, products: torch.dtype | None = None) -> None:
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device
        self.products = products or weight.dtype
        # The layout is the same for any number of rows; 1 is what the library is told to expect.
        self.blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.products), 1)

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
        multiply = torch.ops.mkldnn._linear_pointwise
        if weight.products == weight.dtype:
            return multiply(x, weight.blocks, bias, "none", [], "")  # type: ignore[no-any-return]
        product = multiply(x.to(weight.products), weight.blocks, None, "none", [], "")
        return product.to(x.dtype) if bias is None else torch.add(bias, product)


def pack_linears(network: nn.Module, products: torch.dtype | None = None) -> None:
    """Packs the weights of all linear layers in `network` on a CPU, in place; leaves alone what oneDNN cannot take.
    products: see `PackedWeight`.

    They are no parameters any more: the network can compute, and not be trained, moved or saved. Each plain matrix is
    released before the next is packed, unless somebody else holds it, as an embedding table does.
    """
    for module in network.modules():
        name = "weight" if isinstance(module, nn.Linear) else STACKED
        weight = module._parameters.get(name)
        if weight is not None and weight.device.type == "cpu" and _takes(products or weight.dtype):
            packed = PackedWeight(weight, products)
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


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 of its own, so that they are faster than float32's."""
    return _takes(torch.bfloat16) and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
