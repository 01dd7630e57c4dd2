"""The operations without gradients equal those with them."""

import pytest
import torch

from models import ops


@pytest.mark.parametrize("shape", [(1, 1, 256), (3, 7, 64), (2, 5, 4, 16)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm_without_gradients(shape: tuple[int, ...], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(shape, generator=generator)
    weight = torch.randn(shape[-1], generator=generator)
    exact = x.double()
    exact = exact * (exact.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    with torch.no_grad():
        found = ops.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(found, exact.float())
    torch.testing.assert_close(found, ops.rms_norm(x.requires_grad_(), weight, 1e-6).detach())
    with torch.no_grad():
        assert ops.rms_norm(torch.zeros(1, 4), torch.ones(4), 1e-6).tolist() == [[0.0] * 4]
