"""Text that names a place, and files for libraries that know only local ones."""

import sys
from pathlib import Path

import pytest

from explorer.places import fetched, mark_of, place_of, runs_place, written_locally
from explorer.store import TableStore
from search_spaces.errors import InputError


@pytest.mark.parametrize("text", ["runs", "./runs", "/data/runs", "C-3", Path("a") / "b"])
def test_paths_stay_paths(text):
    assert place_of(text) == Path(text)
    assert isinstance(place_of(text), Path)


@pytest.mark.parametrize(
    "text", ["s3://bucket/some/runs", "s3://bucket/some/runs/", Path("s3://bucket/some/runs")]
)
def test_uri_names_a_folder_in_an_object_store(text):
    place = place_of(text)
    assert not isinstance(place, Path)
    assert (str(place), place.name, str(place.parent)) == (
        "s3://bucket/some/runs",
        "runs",
        "s3://bucket/some",
    )
    assert str(place / "demo-1") == "s3://bucket/some/runs/demo-1"
    assert place_of(place) is place
    assert place_of(str(place)) == place


def test_whole_bucket_is_a_place():
    assert str(place_of("s3://bucket") / "demo-1") == "s3://bucket/demo-1"


@pytest.mark.parametrize("text", ["gopher://x", "file:///tmp/runs", "s3://", "http://x/y"])
def test_other_schemes_are_refused(text):
    with pytest.raises(InputError, match="expected a folder on a disk, or s3://BUCKET/PREFIX"):
        place_of(text)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "explorer.objectstore", None)
    with pytest.raises(InputError, match=r"is missing: pip install 'pareto-explorer\[s3\]'"):
        place_of("s3://bucket")


def test_runs_directory_is_given_or_named_in_the_environment(monkeypatch):
    monkeypatch.setenv("EXPLORER_RUNS_DIR", "there")
    assert (runs_place("here"), runs_place()) == (Path("here"), Path("there"))
    monkeypatch.setenv("EXPLORER_RUNS_DIR", "")
    assert runs_place() == Path("runs")


def test_store_opens_an_object_store_without_touching_it():
    assert repr(TableStore("s3://bucket/runs")) == "TableStore('s3://bucket/runs')"


def test_local_files_are_used_themselves(tmp_path):
    with written_locally(tmp_path / "file") as path:
        path.write_text("a")
    assert path == fetched(path, tmp_path / "elsewhere") == tmp_path / "file"
    before = mark_of(path)
    path.write_text("ab")
    assert mark_of(path) != before
