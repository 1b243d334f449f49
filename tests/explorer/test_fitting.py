"""Batches that fit into memory, and what is said where none does."""

import pytest

from explorer.fitting import MARGIN, fitting_batch_size
from explorer.models import build_trainable
from explorer.specs import load_spec
from search_spaces.errors import InputError
from trainables.memory import step_memory


def spec_of(*changes):
    small = (
        "dataset.size=[96, 96]",
        "model.width=8",
        "train.batch_size=16",
        "train.precision=float32",
    )
    return load_spec("demo", [*small, *changes])


def needed(batch_size, phi):
    found = step_memory(build_trainable(spec_of()), batch_size, {"phi": phi})
    return found.parameters + MARGIN * found.features


def test_a_batch_that_fits_stays():
    limit = 1.001 * needed(16, 0.5)
    assert fitting_batch_size(spec_of(f"train.memory_bytes={limit}")) == 16
    assert fitting_batch_size(spec_of()) == 16  # this machine has more than that


def test_a_batch_that_does_not_fit_shrinks_to_the_largest_that_does():
    for batch_size in (1, 5, 15):
        limit = 1.02 * needed(batch_size, 0.5)
        assert fitting_batch_size(spec_of(f"train.memory_bytes={limit}")) == batch_size


def test_workers_share_a_batch():
    limit = 1.02 * needed(5, 0.5)
    changes = ("train.num_workers=2", f"train.memory_bytes={limit}")
    assert fitting_batch_size(spec_of(*changes)) == 10


def test_where_no_image_fits_the_prior_is_told_that_does():
    prior = "train.prior={phi: [0, 1]}"
    limit = needed(1, 0.72)
    with pytest.raises(InputError, match=r"at phi = 1 one image .* at most \{phi: \[0, 0\.[67]"):
        fitting_batch_size(spec_of(prior, f"train.memory_bytes={limit}"))
    with pytest.raises(InputError, match=r"lower dataset\.size or model\.width"):
        fitting_batch_size(spec_of(prior, "train.memory_bytes=1000"))


def test_other_tasks_are_left_alone():
    changes = ["train.memory_bytes=1000"]
    assert fitting_batch_size(load_spec("hyda-demo", changes)) == 16
