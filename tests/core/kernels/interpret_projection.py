"""A program for `test_projection_triton.py`: runs all checks with TRITON_INTERPRET=1 from the start.

python interpret_projection.py FOLDER

Prints one JSON object with the traceback of every check, null where it passed.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from medseg.core.kernels import Projection, max_projections, projection, projection_triton

CASES = [((1, 2, 3, 66, 33), None), ((1, 1, 10, 3, 1), (3, 2, None)), ((2, 1, 7, 9), None), ((1, 1, 34, 3, 9), 8)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PAD = 4096  # elements before and after an output: more than a tile that runs over would reach


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def make_volume(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Few different values, so that many are equal; zeros of both signs, NaN and infinities; not contiguous."""
    torch.manual_seed(0)
    volume = torch.randint(-3, 4, shape).to(dtype)
    volume[volume == 0] *= -torch.randint(0, 2, shape).to(dtype)[volume == 0] * 2 + 1
    volume.view(-1)[[5, 7, 9]] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    return volume.transpose(-1, -2).requires_grad_()


def compare(want: tuple[Projection, ...], got: tuple[Projection, ...]) -> None:
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(bits(one.values), bits(other.values))


def check_bits_of_the_reference(folder: Path) -> None:
    for shape, slabs in CASES:
        for dtype in DTYPES:
            volume = make_volume(shape, dtype)
            want = max_projections(volume, slab_thickness=slabs, backend="torch")
            got = max_projections(volume, slab_thickness=slabs, backend="triton")
            compare(want, got)
            given = [torch.randint(-3, 4, one.values.shape).to(dtype) for one in want]
            (left,) = torch.autograd.grad([one.values for one in want], volume, given)
            (right,) = torch.autograd.grad([one.values for one in got], volume, given)
            assert torch.equal(bits(left), bits(right))


def check_opcheck(folder: Path) -> None:
    volume = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    torch.library.opcheck(projection._project, (volume, [2, 3, 4], [3, 2, 5], "triton"))
    gradient, index = torch.randn(1, 2, 1, 4, 5, requires_grad=True), torch.zeros(1, 2, 1, 4, 5, dtype=torch.int64)
    torch.library.opcheck(projection._spread, ([gradient], [index], [2], [3], [1, 2, 3, 4, 5], "triton"))


def check_equal_runs(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        volume = make_volume((1, 1, 3, 34, 9), dtype)
        first, *others = (max_projections(volume, backend="triton") for _ in range(3))
        given = [torch.randn(one.values.shape).to(dtype) for one in first]
        (gradient,) = torch.autograd.grad([one.values for one in first], volume, given)
        for other in others:
            compare(first, other)
            (again,) = torch.autograd.grad([one.values for one in other], volume, given)
            assert torch.equal(bits(gradient), bits(again))


def check_strides_beyond_32_bits(folder: Path) -> None:
    """Each stride fits in 32 bits, its product with the last index does not. A sparse file takes the place of 4 GB."""
    base = torch.from_file(str(folder / "sparse"), shared=True, size=2 * 2**30 + 64, dtype=torch.float16)
    for far in range(5):
        shape, strides = [2] * 5, [16, 8, 4, 2, 1]
        shape[far], strides[far] = 3, 2**30
        torch.manual_seed(far)
        values = torch.randn(shape).half()
        volume = base.as_strided(shape, strides).copy_(values)
        want = max_projections(values, backend="torch")
        compare(want, max_projections(volume, backend="torch"))
        for planes in (1, 32):  # one program a plane, and one that walks through all
            with mock.patch.object(projection_triton, "PLANES", planes):
                compare(want, max_projections(volume, backend="triton"))


@contextmanager
def padded_outputs() -> Iterator[list[torch.Tensor]]:
    """Let the kernels' outputs lie in the middle of longer buffers full of 77, which are collected."""
    buffers: list[torch.Tensor] = []
    new_empty = torch.Tensor.new_empty

    def pad(shape, dtype, value=77):
        count = torch.Size(shape).numel()
        whole = new_empty(torch.zeros(0, dtype=dtype), count + 2 * PAD)
        whole.fill_(77)[PAD : PAD + count] = value
        buffers.append(whole)
        return whole[PAD : PAD + count].view(*shape)

    def pad_new(tensor, size, **options):
        return pad(size, tensor.dtype) if isinstance(size, (list, tuple)) else new_empty(tensor, size, **options)

    with (
        mock.patch.object(torch, "full", lambda size, value, dtype, device: pad(size, dtype, value)),
        mock.patch.object(torch, "empty_like", lambda like, dtype=None: pad(like.shape, dtype or like.dtype)),
        mock.patch.object(torch.Tensor, "new_empty", pad_new),
    ):
        yield buffers


def check_nothing_is_written_outside(folder: Path) -> None:
    for shape, slabs in CASES:
        volume = make_volume(shape, torch.float32).detach()
        axes = list(range(volume.ndim - 2))
        dims, slab = [axis + 2 for axis in axes], projection._read_slabs(slabs, volume, axes)
        want = projection._project(volume, dims, slab, "torch")
        given = [torch.randn(values.shape) for values in want[: len(dims)]]
        gradient = projection._spread(given, want[len(dims) :], dims, slab, volume.shape, "torch")
        with padded_outputs() as buffers:
            got = projection_triton.project(volume, dims, slab)
            spread = projection_triton.spread(given, want[len(dims) :], dims, slab, volume.shape)
        assert len(buffers) == 2 + 2 * len(dims), "keys, values, indices and gradient are to be watched"
        for buffer in buffers:
            assert (buffer[:PAD] == 77).all()
            assert (buffer[-PAD:] == 77).all()
        for one, other in zip([*want, gradient], [*got, spread], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


CHECKS: dict[str, Callable[[Path], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}


def main() -> None:
    found: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        try:
            check(Path(sys.argv[1]))
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
