import time

import numpy as np
import pytest
import torch

from trainables.base import Arrays, TrainConfig
from trainables.loading import READ_AHEAD, Loader
from trainables.mapped import Mapped
from trainables.scale_space import ScaleSpaceSegmentation, SegmentationModel
from trainables.train_loop import PlainContext, evaluate_setting, train

MODEL = SegmentationModel(
    in_channels=1,
    labels=("a", "b"),
    size=(8, 8),
    encoder_widths=(2, 3),
    decoder_widths=(2,),
    hidden_sizes=(3, 4),
)
CONFIG = TrainConfig(epochs=3, batch_size=4, prior={"phi": (0.0, 0.5)}, validate_every=1)


@pytest.fixture
def both(tmp_path):
    """The same splits in memory and in files."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (20, 8, 8)).astype(np.uint8)
    images = (masks[:, None] / 2 - 0.5 + rng.normal(0, 0.1, (20, 1, 8, 8))).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "masks.npy", masks)
    rows = {"train": rng.permutation(20)[:13], "val": np.array([0, 19, 7])}
    in_files = [tmp_path / f"{name}.npy" for name in ("images", "masks")]
    return (
        {name: Arrays(images[own], masks[own]) for name, own in rows.items()},
        {name: Arrays(*(Mapped(x, own) for x in in_files)) for name, own in rows.items()},
    )


def order(num_batches):
    generator = torch.Generator().manual_seed(0)
    for step in range(num_batches):
        yield 10 + step, torch.randint(0, 13, (4,), generator=generator)


@pytest.mark.parametrize("num_batches", [0, 1, READ_AHEAD, 3 * READ_AHEAD + 1])
def test_batches_from_files_are_those_from_memory(both, num_batches):
    in_memory, in_files = (
        list(Loader(data["train"], torch.device("cpu")).batches(order(num_batches)))
        for data in both
    )
    assert [step for step, *_ in in_files] == [10 + step for step in range(num_batches)]
    for (_, *expected), (_, *found) in zip(in_memory, in_files, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_pairs_from_files_are_those_from_memory(both):
    pairs = np.array([[0, 1], [5, 2], [12, 12]])
    in_memory, in_files = (
        next(Loader(own, torch.device("cpu")).batches([(0, torch.tensor([2, 0]))]))
        for own in (Arrays(x["train"].images, x["train"].masks, pairs) for x in both)
    )
    assert in_files[1].shape == (2, 2, 8, 8)
    for one, other in zip(in_memory[1:], in_files[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_batches_are_read_ahead_but_not_all_of_them(both):
    asked = []

    def noted():
        for step, rows in order(20):
            asked.append(step)
            yield step, rows

    batches = Loader(both[1]["train"], torch.device("cpu")).batches(noted())
    next(batches)
    assert len(asked) == 1 + READ_AHEAD
    batches.close()
    time.sleep(0.05)
    assert len(asked) == 1 + READ_AHEAD


def test_training_from_files_equals_that_from_memory(both, tmp_path):
    trainable = ScaleSpaceSegmentation("sshn", MODEL)
    one, other = (
        train(trainable, data, CONFIG, PlainContext(tmp_path / name, device="cpu"))
        for name, data in zip(("memory", "files"), both, strict=True)
    )
    assert one.history == other.history
    for name, tensor in one.best.items():
        torch.testing.assert_close(other.best[name], tensor, rtol=0, atol=0)
    module = trainable.build(0)
    found = [evaluate_setting(trainable, module, data["val"], {"phi": 0.3}) for data in both]
    np.testing.assert_array_equal(found[0]["dice"], found[1]["dice"])
