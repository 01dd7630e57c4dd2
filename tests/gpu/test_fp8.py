"""The GPU's own fp8 product reads numbers and scales as folders hold them."""

import pytest
import torch
from torch.nn import functional as F

from models.formats.fp8 import BLOCK, FP8, from_blocks, to_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def test_a_product_in_fp8_is_that_of_the_expanded_weights() -> None:
    """Activations by rows of 128, weights by blocks of 128 x 128, as vLLM and transformers run."""
    if not hasattr(F, "scaled_mm") or torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs torch 2.10 and a Hopper GPU")
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(256, 512, generator=generator)
    weight_OI = torch.randn(384, 512, generator=generator)
    weight_OI[:BLOCK] *= 100  # scales that matter
    number_OI, scale_PQ = to_blocks(weight_OI)
    rows_TQ = x_TI.unflatten(1, (-1, BLOCK)).abs().amax(-1) / torch.finfo(FP8).max
    x8_TI = (x_TI / rows_TQ.repeat_interleave(BLOCK, 1)).to(FP8)
    exact_TI = x8_TI.double() * rows_TQ.repeat_interleave(BLOCK, 1)
    expected_TO = exact_TI @ from_blocks(number_OI, scale_PQ).double().T
    kinds = (F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128)
    scales = (rows_TQ.cuda().T.contiguous().T, scale_PQ.cuda().T)
    found_TO = F.scaled_mm(
        x8_TI.cuda(), number_OI.cuda().T, scales[0], kinds[0], scales[1], kinds[1],
        output_dtype=torch.bfloat16,
    ).double().cpu()  # fmt: skip
    for rows in (slice(0, BLOCK), slice(BLOCK, None)):
        largest = expected_TO[:, rows].abs().max()
        assert (found_TO - expected_TO)[:, rows].abs().max() < 0.01 * largest
