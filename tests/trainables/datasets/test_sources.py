from pathlib import Path

import pytest

from search_spaces.errors import InputError
from trainables.datasets.sources import DATASETS

WITH_ROOT = [source for source in DATASETS.values() if source.needs_root]


def test_sources_are_known_by_their_names():
    assert {name: source.name for name, source in DATASETS.items()} == {
        name: name
        for name in (
            "synthetic",
            "wbc",
            "oxford_pets",
            "oasis",
            "msd_hippocampus",
            "cc359",
            "digits",
            "leukocytes",
            "cxr",
            "brain_age",
            "cub200",
            "camus",
            "pandental",
        )
    }


@pytest.mark.parametrize("source", WITH_ROOT, ids=lambda source: source.name)
def test_missing_root_is_refused_and_reported(source, tmp_path):
    with pytest.raises(InputError, match=f"dataset '{source.name}' needs dataset.root"):
        source.load(None)
    with pytest.raises(InputError, match=f"{source.name}: dataset.root '.*gone' is no folder"):
        source.load(str(tmp_path / "gone"))
    report = source.check(tmp_path / "gone")
    assert report.num_images == 0
    assert "is no folder" in report.problems[0]


@pytest.mark.parametrize("source", WITH_ROOT, ids=lambda source: source.name)
def test_empty_root_is_refused_and_reported(source, tmp_path):
    with pytest.raises(InputError, match=r"dataset\.root must"):
        source.load(tmp_path)
    report = source.check(tmp_path)
    assert report.num_images == 0
    assert report.problems


@pytest.mark.parametrize("source", WITH_ROOT, ids=lambda source: source.name)
def test_unusable_root_name_is_refused(source):
    with pytest.raises(InputError, match="cannot be read"):
        source.load(Path("x" * 5000))
    assert "cannot be read" in source.check(Path("x" * 5000)).problems[0]
