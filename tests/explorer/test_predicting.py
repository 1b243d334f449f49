"""Pictures of predictions, and the networks that are kept."""

import gzip
import io

import nibabel
import numpy as np
import pytest
from PIL import Image

from explorer.predicting import Predictor, Segmentation, Warping, colours_of, read_image
from search_spaces.errors import InputError
from trainables.datasets.base import ReadImage


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file.data)))


@pytest.mark.parametrize("num_labels", [2, 40])
def test_a_mask_holds_label_numbers_and_the_overlay_their_colours(num_labels):
    labels = tuple(f"label_{k}" for k in range(1, num_labels + 1))
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :2], mask[1, 0] = 1, num_labels
    found = Segmentation(np.zeros((1, 4, 5), np.float32), mask, labels)
    files = found.files()
    np.testing.assert_array_equal(pixels(files["mask"]), mask)
    overlay = pixels(files["overlay"])
    assert (overlay[mask == 0] == 128).all()
    expected = (colours_of(labels)[num_labels] + 128) // 2
    np.testing.assert_array_equal(overlay[1, 0], expected)
    areas = found.statistics()["labels"]
    assert areas["label_1"] == {"pixels": 2, "share": 0.1}
    assert areas[labels[-1]]["pixels"] == 1


def test_volumes_come_as_nifti_on_the_grid_that_they_were_brought_to():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    image = np.zeros((1, 2, 3, 4), np.float32)
    files = Segmentation(image, mask, ("a", "b"), affine).files()
    stored = nibabel.Nifti1Image.from_bytes(gzip.decompress(files["mask"].data))
    np.testing.assert_array_equal(np.asarray(stored.dataobj), mask)
    np.testing.assert_array_equal(stored.affine, affine)
    assert pixels(files["overlay"]).shape == (2, 4, 3)  # the middle of the second axis


def test_a_shift_is_told_in_voxels_and_images_that_agree_are_grey():
    image = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)
    displacement = np.zeros((2, 5, 6), np.float32)
    displacement[0], displacement[1] = 3, 4
    found = Warping(image, image, displacement)
    told = found.statistics()
    assert told["displacement"] == {"mean": 5.0, "max": 5.0}
    assert (told["folded_voxels"], told["folded_share"]) == (0, 0.0)
    overlay = found.overlay()
    np.testing.assert_array_equal(overlay, overlay[..., :1].repeat(3, axis=-1))
    turned = -2 * np.stack(np.meshgrid(np.arange(5.0), np.arange(6.0), indexing="ij"))
    turned[1] = 0  # mirrored along one axis: every voxel folds
    assert Warping(image, image, turned.astype(np.float32)).statistics()["folded_share"] == 1


def test_networks_are_kept_until_their_trial_changes(trained):
    exploration = trained("demo")
    predictor, setting = Predictor(), {"phi": 0.25}

    def network(phi=0.25):
        arguments = exploration.folder, exploration.spec, "sshn-s0", {"phi": phi}
        return predictor.network(*arguments)[1]

    first = network()
    assert network() is first
    assert network(0.3) is not first
    record = exploration.folder / "trials" / "sshn-s0" / "trial.json"
    record.write_bytes(record.read_bytes())
    assert network() is not first
    with pytest.raises(InputError, match="holds no trained model"):
        predictor.network(exploration.folder, exploration.spec, "sshn-s9", setting)


def test_an_image_of_the_data_set_is_segmented_as_in_evaluation(trained):
    import torch

    from explorer.splits import load_data

    exploration = trained("demo")
    dataset = load_data(exploration.spec)
    predictor, setting = Predictor(), {"phi": 0.25}
    arguments = exploration.folder, exploration.spec, "sshn-s0", setting
    found = predictor.predict(*arguments, [ReadImage(dataset.images[0])])
    assert found.labels == dataset.labels
    trainable, network = predictor.network(*arguments)
    images, masks = (torch.from_numpy(a[:1]) for a in (dataset.images, dataset.masks))
    values = trainable.evaluate(network, images, masks)
    mine = trainable.evaluate(
        lambda x: torch.eye(5)[torch.from_numpy(found.mask).long()].permute(2, 0, 1)[None],
        images,
        masks,
    )
    torch.testing.assert_close(values, mine, equal_nan=True)


def test_a_data_set_that_reads_no_single_image_says_so(trained):
    from dataclasses import replace

    from explorer import Extensions
    from trainables.datasets.sources import DATASETS

    spec = trained("demo").spec
    spec = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"name": "mine"})})
    mine = replace(DATASETS["synthetic"], read=None)
    with pytest.raises(InputError, match="mine does not say how one more image is read"):
        read_image(spec.extended(Extensions(datasets={"mine": mine})), "image", b"")
