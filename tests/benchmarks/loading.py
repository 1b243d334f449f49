"""Images per second: decoding every time, decoding and keeping, and reading what was kept.

And how long a training step waits for its batch where images stay in their file.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.base import Arrays, TrainConfig
from trainables.datasets import oxford_pets, wbc
from trainables.datasets.base import ImageDataset
from trainables.datasets.cache import VARIABLE
from trainables.loading import Loader
from trainables.mapped import mapped
from trainables.methods import TRAINABLES
from trainables.scale_space import SegmentationModel
from trainables.train_loop import draw

SETS = {"wbc": (wbc, (64, 64), 16), "oxford_pets": (oxford_pets, (128, 128), 16)}
REPEATS = 3
NUM_STEPS = 60
BATCH_SIZE = 4


def measure() -> dict[str, list[dict[str, Any]]]:
    """Real pictures, out of EXPLORER_DATA_DIR; the files are in the system's cache."""
    data_dir = os.environ.get("EXPLORER_DATA_DIR")
    if data_dir is None:
        print("  EXPLORER_DATA_DIR names no folder with wbc/ and oxford_pets/: nothing to measure")
        return {"reading": [], "steps": []}
    reading, steps = [], []
    for name, (source, size, width) in SETS.items():
        root = Path(data_dir) / name
        with tempfile.TemporaryDirectory() as folder:

            def load(
                place: str, *, source: Any = source, root: Path = root, size: Any = size
            ) -> Any:
                with _cache(place):
                    return source.load(root, size=size)

            load("")  # the system's cache is warm
            decoding_s = min(_seconds(lambda load=load: _touched(load(""))) for _ in range(REPEATS))
            first_s = _seconds(lambda load=load, folder=folder: _touched(load(folder)))
            later_s = min(
                _seconds(lambda load=load, folder=folder: _touched(load(folder)))
                for _ in range(REPEATS)
            )
            dataset = load(folder)
            reading.append(
                {
                    "dataset": name,
                    "size": size[0],
                    "images": len(dataset),
                    "decoding_per_s": len(dataset) / decoding_s,
                    "first_per_s": len(dataset) / first_s,
                    "later_per_s": len(dataset) / later_s,
                    "ratio": decoding_s / later_s,
                }
            )
            steps.append({"dataset": name, **_waiting(dataset, width)})
    return {"reading": reading, "steps": steps}


def _waiting(dataset: ImageDataset, width: int) -> dict[str, Any]:
    """A training whose images stay in their file: what of a step is waiting for the batch."""
    torch.set_num_threads(1)
    model = SegmentationModel(
        in_channels=dataset.images.shape[1],
        labels=dataset.labels,
        size=dataset.images.shape[2:],
        encoder_widths=(width,) * 5,
        decoder_widths=(width,) * 4,
        prior=((0.0, 0.5),),
        hidden_sizes=(10, 16),
    )
    trainable: Any = TRAINABLES["sshn"].construct(model, None)
    module = trainable.build(0)
    config = TrainConfig(epochs=1, prior={"phi": (0.0, 0.5)})
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    rows = np.random.default_rng(0).permutation(np.arange(len(dataset)).repeat(2))
    images, masks = dataset.images, dataset.masks
    in_files = [mapped(own, np.arange(len(dataset))) for own in (images, masks)]
    assert None not in in_files
    loader = Loader(Arrays(*in_files), torch.device("cpu"))  # type: ignore[arg-type]
    order = (
        (step, torch.from_numpy(rows[step * BATCH_SIZE % len(dataset) :][:BATCH_SIZE]))
        for step in range(NUM_STEPS)
    )
    waiting_s, start = 0.0, time.perf_counter()
    batches = loader.batches(order)
    for _ in range(NUM_STEPS):
        asked = time.perf_counter()
        step, x, y = next(batches)
        waiting_s += time.perf_counter() - asked
        conditioning = draw(trainable.drawn, config.prior, (0, step))
        loss = trainable.loss(module, x, y.long(), conditioning, "cross_entropy")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    total_s = time.perf_counter() - start
    return {
        "size": dataset.images.shape[-1],
        "width": width,
        "batch_size": BATCH_SIZE,
        "step_ms": 1e3 * total_s / NUM_STEPS,
        "waiting_ms": 1e3 * waiting_s / NUM_STEPS,
        "share": waiting_s / total_s,
    }


def _touched(dataset: ImageDataset) -> float:
    """Read every number once, as an epoch does."""
    return float(dataset.images.sum()) + float(dataset.masks.sum())


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
