"""How a stationary velocity field moves an image, and what is told of the result.

Shapes: B batch, C channels, d spatial axes, then the spatial axes. A field has d components, in
the order of the axes, in voxels of its own grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def warp(image: Tensor, displacement: Tensor, *, mode: str = "bilinear") -> Tensor:
    """The image (B, C, *spatial) read at x + displacement (B, d, *spatial); borders are repeated.

    Args:
        image: what is moved.
        displacement: in voxels.
        mode: `bilinear` along every axis, or `nearest`.
    """
    size = displacement.shape[2:]
    grid = []
    for axis, length in enumerate(size):
        shape = [-1 if other == axis else 1 for other in range(len(size))]
        position = torch.arange(length, dtype=displacement.dtype, device=displacement.device)
        # -1 and 1 are the outer edges of the first and last voxel
        grid.append((2 * (position.view(shape) + displacement[:, axis]) + 1) / length - 1)
    # grid_sample takes the last axis first
    places = torch.stack(grid[::-1], dim=-1)
    moved: Tensor = F.grid_sample(
        image, places, mode=mode, padding_mode="border", align_corners=False
    )
    return moved


def integrate(velocity: Tensor, *, num_steps: int = 7) -> Tensor:
    """Displacement (B, d, *spatial) of a stationary velocity after unit time.

    Scaling and squaring: the field of time 2^-n, composed n times with itself. Where the flow
    leaves the grid, the border's velocity is repeated.

    Source: Arsigny, Commowick, Pennec, Ayache (2006), doi:10.1007/11866565_113.
    """
    displacement = velocity / 2.0**num_steps
    for _ in range(num_steps):
        displacement = displacement + warp(displacement, displacement)
    return displacement


def resized_field(field: Tensor, size: tuple[int, ...]) -> Tensor:
    """A field (B, d, *spatial) on a grid of another size, in that grid's voxels."""
    before = field.shape[2:]
    if tuple(before) == tuple(size):
        return field
    mode = "bilinear" if len(size) == 2 else "trilinear"
    scale = [after / own for after, own in zip(size, before, strict=True)]
    factor = torch.tensor(scale, dtype=field.dtype, device=field.device)
    resized: Tensor = F.interpolate(field, size=size, mode=mode, align_corners=False)
    return resized * factor.view(-1, *[1] * len(size))


def gradients(field: Tensor) -> list[Tensor]:
    """Forward differences of a field (B, d, *spatial) along each axis; one shorter along it."""
    return [field.diff(dim=axis) for axis in range(2, field.dim())]


def mean_gradient(field: Tensor) -> Tensor:
    """Mean (B,) over voxels of the Euclidean norm of a field's gradient, per voxel."""
    squares = torch.zeros_like(field[:, 0])
    for axis, difference in enumerate(gradients(field), start=1):
        own = difference.square().sum(1)
        padding = [0, 0] * (field.dim() - 2 - axis) + [0, 1]
        squares = squares + F.pad(own, padding)
    return squares.sqrt().flatten(1).mean(1)


def jacobian_determinants(displacement: Tensor) -> Tensor:
    """Determinants (B, *spatial) of the derivative of x + displacement(x).

    Central differences, one-sided at the borders.
    """
    d = displacement.shape[1]
    axes = tuple(range(2, 2 + d))
    derivatives = torch.gradient(displacement, dim=axes)  # along each axis: (B, d, *spatial)
    rows = torch.stack(derivatives, dim=-1).movedim(1, -2)  # (B, *spatial, d, d)
    jacobian = rows + torch.eye(d, dtype=rows.dtype, device=rows.device)
    if d == 2:
        a, b = jacobian.unbind(-2)
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    first, second, third = jacobian.unbind(-2)
    determinants: Tensor = (first * torch.linalg.cross(second, third)).sum(-1)
    return determinants
