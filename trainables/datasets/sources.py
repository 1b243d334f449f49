"""The data sets that a specification can name."""

from trainables.datasets import (
    brain_age,
    camus,
    cc359,
    cub200,
    cxr,
    digits,
    leukocytes,
    msd_hippocampus,
    oasis,
    oxford_pets,
    pandental,
    synthetic,
    wbc,
)
from trainables.datasets.base import DatasetSource

DATASETS: dict[str, DatasetSource] = {
    source.name: source
    for source in (
        synthetic.SOURCE,
        wbc.SOURCE,
        oxford_pets.SOURCE,
        oasis.SOURCE,
        msd_hippocampus.SOURCE,
        cc359.SOURCE,
        digits.SOURCE,
        leukocytes.SOURCE,
        cxr.SOURCE,
        brain_age.SOURCE,
        cub200.SOURCE,
        camus.SOURCE,
        pandental.SOURCE,
    )
}
