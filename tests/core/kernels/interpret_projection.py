"""A program for `test_projection_triton.py` that runs with TRITON_INTERPRET=1 from the start."""

from __future__ import annotations

import torch

from medseg.core.kernels import max_projections

CASES = [((1, 2, 3, 66, 33), None), ((1, 1, 10, 3, 1), (3, 2, None)), ((2, 1, 7, 9), None), ((1, 1, 34, 3, 9), 8)]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def main() -> None:
    torch.manual_seed(0)
    for shape, slabs in CASES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            volume = torch.randint(-3, 4, shape).to(dtype)
            volume[volume == 0] *= -torch.randint(0, 2, shape).to(dtype)[volume == 0] * 2 + 1
            volume.view(-1)[[5, 7, 9]] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
            volume = volume.transpose(-1, -2).requires_grad_()
            want = max_projections(volume, slab_thickness=slabs, backend="torch")
            got = max_projections(volume, slab_thickness=slabs, backend="triton")
            given = [torch.randint(-3, 4, one.values.shape).to(dtype) for one in want]
            for one, other in zip(want, got, strict=True):
                assert torch.equal(one.indices, other.indices)
                assert torch.equal(bits(one.values), bits(other.values))
            (left,) = torch.autograd.grad([one.values for one in want], volume, given)
            (right,) = torch.autograd.grad([one.values for one in got], volume, given)
            assert torch.equal(bits(left), bits(right))


if __name__ == "__main__":
    main()
