import pickle

import numpy as np
import pytest
from PIL import Image

from explorer.specs import load_spec
from explorer.splits import load_data, samples_of
from trainables.mapped import Mapped


@pytest.fixture
def changes(tmp_path):
    """What a spec of white blood cells needs to read twenty small ones."""
    rng = np.random.default_rng(0)
    for number in (1, 2):
        folder = tmp_path / "data" / f"Dataset {number}"
        folder.mkdir(parents=True)
        for stem in range(10):
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            mask = rng.choice(np.array([0, 128, 255], dtype=np.uint8), (16, 16))
            Image.fromarray(image).save(folder / f"{stem:03d}.bmp")
            Image.fromarray(mask).save(folder / f"{stem:03d}.png")
    return [f"dataset.root={tmp_path / 'data'}", "dataset.size=[16, 16]"]


def samples(changes):
    spec = load_spec("sshn-wbc", changes)
    return samples_of(spec, load_data(spec))


def test_images_that_take_too_much_memory_stay_in_their_file(changes, tmp_path, monkeypatch):
    in_memory = samples([*changes, "dataset.memory_bytes=1"])  # nothing is kept decoded
    assert not any(isinstance(one.arrays.images, Mapped) for one in in_memory.values())
    monkeypatch.setenv("EXPLORER_CACHE_DIR", str(tmp_path / "cache"))
    assert not any(isinstance(x.arrays.images, Mapped) for x in samples(changes).values())
    of_all = 20 * 3 * 16 * 16 * 4
    fit = samples([*changes, f"dataset.memory_bytes={of_all}"])
    assert not any(isinstance(one.arrays.images, Mapped) for one in fit.values())
    in_files = samples([*changes, f"dataset.memory_bytes={of_all - 1}"])
    assert in_files.keys() == {"train", "val", "test"}
    for name, one in in_files.items():
        arrays = pickle.loads(pickle.dumps(one.arrays))
        assert isinstance(arrays.images, Mapped)
        assert isinstance(arrays.masks, Mapped)
        assert one.ids == in_memory[name].ids
        np.testing.assert_array_equal(arrays.images[:], in_memory[name].arrays.images)
        np.testing.assert_array_equal(arrays.masks[:], in_memory[name].arrays.masks)
