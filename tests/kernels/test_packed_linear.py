"""Packed weights give what plain ones give, wherever a network multiplies by them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.packed_linear import PackedWeight, _takes, multiplies_bfloat16, pack_linears
from models.networks.qwen2 import DecoderConfig, Qwen2Model
from streaming.layers.transformer import ProjectedTransformer, TransformerConfig

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [dtype for dtype in ROUNDING if _takes(dtype)])
@pytest.mark.parametrize("rows", [(1,), (7,), (2, 5), (1, 3, 2)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_product_equals_the_plain_one_within_rounding(dtype: torch.dtype, rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, 48).to(dtype), torch.randn(72, 48).to(dtype)
    shift = torch.randn(72).to(dtype) if bias else None
    product = F.linear(x, PackedWeight(weight), shift)  # type: ignore[arg-type]
    exact = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    assert product.dtype == dtype and product.shape == (*rows, 72)
    assert error(product, exact) < ROUNDING[dtype]


@torch.inference_mode()
def test_inputs_may_lie_anyhow_in_memory_and_be_none() -> None:
    weight = torch.randn(6, 8)
    packed = PackedWeight(weight)
    for x in (torch.randn(8, 5).T, torch.randn(3, 8, 4).transpose(1, 2), torch.randn(9, 8)[::2], torch.randn(0, 8)):
        torch.testing.assert_close(F.linear(x, packed), F.linear(x, weight))  # type: ignore[arg-type]


def test_nothing_but_a_linear_layer_takes_a_packed_weight() -> None:
    with pytest.raises(TypeError, match=r"F\.linear alone"):
        torch.matmul(torch.randn(2, 8), PackedWeight(torch.randn(8, 8)))  # type: ignore[arg-type]


@torch.inference_mode()
def test_packed_networks_compute_the_same() -> None:
    torch.manual_seed(1)
    decoder = Qwen2Model(DecoderConfig(32, 64, 96, 2, 4, 2)).eval()
    attending = ProjectedTransformer(TransformerConfig(24, 32, 4, 2, 48, 24)).eval()
    x, frames = torch.randn(2, 9, 64), torch.randn(1, 11, 24)
    expected, also = decoder(x)[0], attending(frames)
    pack_linears(decoder)
    pack_linears(attending)
    torch.testing.assert_close(decoder(x)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attending(frames), also, rtol=1e-4, atol=1e-5)
    left = {name for network in (decoder, attending) for name, value in network.named_parameters() if value.dim() > 1}
    assert left == {"embed_tokens.weight"}, "every matrix that is multiplied by is packed, and no table"


def test_a_head_tied_to_a_table_leaves_the_table_alone() -> None:
    table, head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
    head.weight = table.weight
    pack_linears(head)
    with torch.inference_mode():
        scores = head(table(torch.tensor([3])))
        torch.testing.assert_close(scores, table.weight[3:4] @ table.weight.T)


@torch.inference_mode()
def test_what_cannot_be_packed_stays_plain() -> None:
    half = nn.Linear(8, 6).half()
    weight = half.weight
    pack_linears(half)
    assert half.weight is weight and half(torch.ones(2, 8).half()).shape == (2, 6)


rounds = pytest.mark.skipif(not multiplies_bfloat16(), reason="the processor has no products of bfloat16")


@rounds
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_float32_through_products_of_bfloat16_is_off_by_their_rounding(bias: bool) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(5, 48), torch.randn(72, 48)
    shift = torch.randn(72) if bias else None
    product = F.linear(x, PackedWeight(weight, torch.bfloat16), shift)  # type: ignore[arg-type]
    assert product.dtype == torch.float32
    exact = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    assert 1e-5 < error(product, exact) < ROUNDING[torch.bfloat16]


@rounds
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 512), (256, 1536), (768, 256), (256, 1603), (1024, 32)])
@torch.inference_mode()
def test_a_row_rounds_alike_among_however_many(inputs: int, outputs: int) -> None:
    """The widths of the embedded Thinker and Talker, for steps and for prompts."""
    torch.manual_seed(3)
    packed, x = PackedWeight(torch.randn(outputs, inputs), torch.bfloat16), torch.randn(300, inputs)
    alone = torch.cat([F.linear(row[None], packed) for row in x])  # type: ignore[arg-type]
    for rows in (2, 3, 8, 17, 64, 300):
        assert torch.equal(F.linear(x[:rows], packed), alone[:rows])  # type: ignore[arg-type]
