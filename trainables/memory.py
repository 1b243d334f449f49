"""What a training step holds in memory, from the sizes of its tensors: nothing is computed.

At large rescaling factors it is what decides whether a network can be trained at all (the
limitation that "Amortized Learning of Flexible Feature Scaling" names).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from search_spaces.space import Config
from trainables.base import Trainable

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Of features. Steps take 1.0 to 1.3 times what is predicted; the rest is what a library allocates
# for its convolutions. Of tensors below 32 MiB the C library's heap keeps pieces beside: on the
# CPUs tried it came to 1.2 to 2.2 times, differently in every run.
MARGIN = 2.2
STATES = 3  # of every parameter beside itself: its gradient and the two moments of Adam


@dataclass(frozen=True)
class StepMemory:
    """Bytes in float32 at the peak of a training step.

    Attributes:
        parameters: with their gradients and the optimiser's moments, whatever the batch.
        features: what backward needs of the forward pass, weights that a network predicts too, the
            two largest gradients beside it, and the images.
    """

    parameters: int
    features: int


def step_memory(
    trainable: Trainable, batch_size: int, setting: Config, *, is_of_pairs: bool = False
) -> StepMemory:
    """What a step of the costliest stage holds, by the tensors that autograd would save.

    What a library allocates for a convolution is not counted.

    Args:
        trainable: whose networks run without storage, and whose model has a size.
        batch_size: images, or pairs, of a step.
        setting: of its conditioning.
        is_of_pairs: a step is of pairs of images.

    Raises:
        RuntimeError: the network looks at numbers of a tensor, which has none without storage.
    """
    model: Any = trainable.model  # type: ignore[attr-defined]  # of what has images of a size
    with torch.device("meta"):
        module = trainable.build(0)
        images = torch.empty(batch_size, model.in_channels, *model.size)
        shape = (batch_size, 2, *model.size) if is_of_pairs else (batch_size, *model.size)
        masks = torch.zeros(shape, dtype=torch.long)
    peaks = []
    for stage in trainable.stages:
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            trainable.loss(module, images, masks, setting, stage.name)
        own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        sizes = [x.untyped_storage().nbytes() for key, x in kept.items() if key not in own]
        peaks.append(sum(sizes) + sum(sorted(sizes)[-2:]))
    numbers = sum(parameter.numel() for parameter in module.parameters())
    size = torch.finfo(torch.float32).bits // 8
    given = images.numel() * size + masks.numel() * masks.element_size()
    return StepMemory((1 + STATES) * numbers * size, max(peaks) + given)


def whole_bytes(*, on_gpu: bool) -> float | None:
    """All memory of the first GPU, or what this machine, or its control group, lets processes have.

    None where this machine has no GPU, or its kernel tells nothing.
    """
    if on_gpu:
        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.get_device_properties(0).total_memory)
    found = []
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max": no limit
            found.append(float(Path(path).read_text(encoding="ascii")))
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024.0 * float(line.split()[1]) for line in lines if line.startswith("MemTotal:")]
    return min(found, default=None)
