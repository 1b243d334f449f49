"""The data sets that a specification can name."""

from trainables.datasets import oasis, oxford_pets, synthetic, wbc
from trainables.datasets.base import DatasetSource

DATASETS: dict[str, DatasetSource] = {
    source.name: source
    for source in (synthetic.SOURCE, wbc.SOURCE, oxford_pets.SOURCE, oasis.SOURCE)
}
