"""Brains in T1 MR volumes of several sites, one domain each, and the ages of their owners (HyDA).

Source: Serebro, Riklin Raviv (2025), "HyDA: Hypernetworks for Test Time Domain Adaptation in
Medical Imaging Analysis", section 4.2, arXiv:2503.04979. Its 19 data sets each have owners,
licences and layouts of their own; this reads whatever of them stands in one folder, in the manner
of BIDS (bids-specification.readthedocs.io).

Layout: a table, `participants.tsv` or, if there is none, `participants.csv`, with one row for each
volume and the columns `participant_id` or `subject`, `age` in years, and `site`. The volume of a
row is its `file`, a path below the folder, where that column stands and is filled; else the first
of these that stands, ID being the id without a leading `sub-`, and `.nii` as good as `.nii.gz`:
`sub-ID/anat/sub-ID_T1w.nii.gz`, `sub-ID_T1w.nii.gz`, `ID/ID.nii.gz`, `ID.nii.gz`. `n/a` and a blank
are unknown; ages and sites must be known. The column `sex`, where it stands, is kept.

Volumes are assumed to be of one kind: the skull taken off, and the brain about their middle, best
aligned to one template. They are turned to the nearest axes R-A-S, never by an angle, cut or padded
about their middle to 160 x 192 x 160 mm, and resampled to the size, voxels of 2 mm by default.
Zeros are background, -1; of the other voxels the 1st percentile and what is below becomes -1, the
99th and what is above 1. Scaling to the extremes, a choice of HyDA's code, would let one bright
vessel darken all the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import (
    MAX_PIXELS,
    Column,
    DatasetReport,
    DatasetSource,
    ImageDataset,
    ReadImage,
    Size,
    require_size,
)
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    load_files,
    open_listing,
    read_rows,
    read_text,
)
from trainables.datasets.nifti import (
    Scan,
    fitted,
    intensity_range,
    overlap,
    product,
    read_nifti,
    resample_image,
    resampled_affine,
    scaled_intensities,
)

SIZE = (80, 96, 80)
# along R, A and S; a brain is some 140 x 175 x 130
FIELD_MM = (160, 192, 160)
PERCENTILES = (1.0, 99.0)
# Smaller voxels fill more memory than a volume may; larger ones are a damaged header.
SPACINGS_MM = (0.45, 10.0)
MAX_AGE = 120

_TABLES = ("participants.tsv", "participants.csv")
_PLACES = ("sub-{0}/anat/sub-{0}_T1w", "sub-{0}_T1w", "{0}/{0}", "{0}")
_SUFFIXES = (".nii.gz", ".nii")
_UNKNOWN = ("", "n/a")
_ID = re.compile(r"\w[\w.+-]*", re.ASCII)
_AGE = re.compile(r"\d{1,3}(\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class _Options:
    """Those of `load` that say what a folder holds; empty: the layout of this module."""

    table: str = ""
    image: str = ""
    site: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str):
                raise InputError(
                    f"dataset.options.{name} of brain_age: expected a text, got {value!r}"
                )
        for name, value in (("table", self.table), ("image", self.image)):
            if not _is_below(value):
                raise InputError(
                    f"dataset.options.{name} of brain_age: expected a file below its folder, got"
                    f" {value!r}"
                )


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    table: str = "",
    image: str = "",
    site: str = "",
    group: str = "",
) -> ImageDataset:
    """Load every volume that the table names; domains are its sites, targets ages in years.

    Args:
        root: folder of the table.
        size: (R, A, S) to return.
        table: file in `root`, separated by commas if its name ends so (`.csv`), else by tabs.
        image: file in the folder of each row's id, such as `aligned_norm_2mm.nii.gz`.
        site: of all rows, for a table without that column.
        group: column that names the person, where several rows are of one; default: the id.

    Raises:
        InputError: folder or file missing, broken, or not of the layout.
    """
    size = require_size("brain_age", size, num_axes=(3,))
    options = _Options(table, image, site, group)
    listing = open_listing("brain_age", root, partial(_listing, options))
    return load_files(
        "brain_age",
        listing,
        _decode,
        size=size,
        labels=(),
        domain_names=_sites(listing),
    )


def check(root: Path) -> DatasetReport:
    """Read every volume below `root` and report, with the default options."""
    list_files = partial(_listing, _Options())
    try:
        sites = _sites(open_listing("brain_age", root, list_files))
    except InputError as error:
        return DatasetReport(0, (str(error),), {})
    return check_files("brain_age", root, list_files, _decode, size=SIZE, domain_names=sites)


def read(
    path: Path, data: bytes, *, size: Size, max_pixels: int = MAX_PIXELS, **_: Any
) -> ReadImage:
    """One more volume, as `load` makes it of its own; see `DatasetSource.read`."""
    field = _field(read_nifti(path, data, example=FIELD_MM, max_pixels=max_pixels))
    return ReadImage(resample_image(_intensities(field), size), resampled_affine(field, size))


def _decode(sample: Sample, image_bytes: bytes, _: bytes, size: Size) -> Pair:
    pixels = read(sample.image_path, image_bytes, size=size).pixels
    return pixels, np.zeros(size, dtype=np.uint8)


def _field(scan: Scan) -> Scan:
    """The field of view about the middle of a volume, axes R-A-S, in its own voxels."""
    import nibabel

    low, high = SPACINGS_MM
    spacing = scan.spacing_mm
    is_usual = ((spacing >= low) & (spacing <= high)).all()
    # An axis may lead nowhere though the others are as they should be.
    if not is_usual or "?" in scan.axes:
        raise InputError(
            f"{scan.path}: {scan.grid}; expected three directions in space and voxels from {low:g}"
            f" to {high:g} mm, copy the original again"
        )
    orientation = nibabel.io_orientation(scan.affine)  # type: ignore[no-untyped-call] # has no types
    turned = nibabel.apply_orientation(scan.values, orientation)  # type: ignore[no-untyped-call] # has no types
    back = nibabel.orientations.inv_ornt_aff(orientation, scan.values.shape)  # type: ignore[no-untyped-call] # has no types
    affine = scan.affine @ back
    along = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(round(mm / each) for mm, each in zip(FIELD_MM, along, strict=True))
    source, target = overlap(turned.shape, shape)
    shift = np.eye(4)
    shift[:3, 3] = [own.start - new.start for own, new in zip(source, target, strict=True)]
    return Scan(scan.path, fitted(turned, shape, 0), affine @ shift)


def _intensities(field: Scan) -> NDArray[np.float32]:
    is_brain = field.values != 0
    if not is_brain.any():
        raise InputError(
            f"{field.path}: the middle {product(FIELD_MM)} mm hold zeros alone; expected a brain,"
            " copy the original again"
        )
    limits = intensity_range(replace(field, values=field.values[is_brain]), PERCENTILES)
    pixels = scaled_intensities(field.values, *limits)
    return np.where(is_brain, pixels, np.float32(-1))


def _sites(listing: Listing) -> tuple[str, ...]:
    """Names of the domains, sorted."""
    return tuple(sorted(set(listing.attributes.get("site", ()))))


def _listing(options: _Options, root: Path) -> Listing:
    names = (options.table,) if options.table else _TABLES
    standing = [root / name for name in names if (root / name).is_file()]
    if not standing:
        return Listing(
            root,
            (),
            (
                f"brain_age: {str(root)!r} holds no {' or '.join(names)}; dataset.root must be a"
                " folder with volumes and their table: participant_id, age, site",
            ),
        )
    table = standing[0]
    problems: list[str] = []
    people = _people(options, table, problems)
    sites = sorted({person["site"] for person in people.values()})
    samples = tuple(
        Sample(
            id=name,
            image_path=root / person["image"],
            mask_path=root / person["image"],
            domain=sites.index(person["site"]),
            target=float(person["age"]),
            group=person["group"],
        )
        for name, person in people.items()
    )
    if not samples and not problems:
        problems.append(f"{table}: no row; expected one for each volume")
    attributes: dict[str, Column] = {
        "age": np.array([sample.target for sample in samples]),
        "site": tuple(person["site"] for person in people.values()),
    }
    if any("sex" in person for person in people.values()):
        attributes["sex"] = tuple(person["sex"] for person in people.values())
    return Listing(root, samples, tuple(problems), (table,), attributes)


def _people(options: _Options, table: Path, problems: list[str]) -> dict[str, dict[str, str]]:
    """What is known of each id, its image among it; what is wrong is added to `problems`."""
    try:
        header, *rows = _cells(table) or [[]]
        names = _names(options, table, header)
    except InputError as error:
        problems.append(str(error))
        return {}
    people: dict[str, dict[str, str]] = {}
    images: set[str] = set()
    for line, row in enumerate(rows, start=2):
        if not any(row):
            continue
        try:
            name, person = _person(options, table.parent, names, row)
            if name in people:
                raise InputError(f"{name} has a row already; take one out")
            if person["image"] in images:
                raise InputError(f"{person['image']} is of another row already; take one out")
        except InputError as error:
            problems.append(f"{table}: line {line}: {error}")
        else:
            people[name] = person
            images.add(person["image"])
    return people


def _cells(table: Path) -> list[list[str]]:
    if table.suffix == ".csv":
        return read_rows(table)
    return [line.split("\t") for line in read_text(table).splitlines()]


def _names(options: _Options, table: Path, header: Sequence[str]) -> list[str]:
    """The names of the columns.

    Raises:
        InputError: one is missing, or the site is told twice.
    """
    names = [name.strip() for name in header]
    absent = [name for name in ("age", options.group) if name and name not in names]
    if "participant_id" not in names and "subject" not in names:
        absent = ["participant_id", *absent]
    if absent:
        raise InputError(
            f"{table}: no column {', '.join(absent)}; expected participant_id (or subject), age,"
            " site"
        )
    if "site" not in names and not options.site:
        raise InputError(
            f"{table}: no column site; expected the site of each volume, which is its domain, or"
            " one name for all in dataset.options.site"
        )
    if "site" in names and options.site:
        raise InputError(
            f"{table}: has a column site, and dataset.options.site is {options.site!r}; expected"
            " one of them, take the option out"
        )
    return names


def _person(
    options: _Options, root: Path, names: Sequence[str], row: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """The id of a row, and what is known of it.

    Raises:
        InputError: something is not as expected, or its volume is missing.
    """
    if len(row) != len(names):
        raise InputError(f"expected {len(names)} columns, got {len(row)}; correct the row")
    cells = {name: cell.strip() for name, cell in zip(names, row, strict=True)}
    given = {name: "" if cell in _UNKNOWN else cell for name, cell in cells.items()}
    name = given["participant_id" if "participant_id" in given else "subject"]
    age, site = given["age"], given.get("site", options.site)
    if not _ID.fullmatch(name):
        raise InputError(f"expected an id of letters, digits, '_', '-', '.' or '+', got {name!r}")
    if not _AGE.fullmatch(age) or float(age) > MAX_AGE:
        raise InputError(
            f"expected an age from 0 to {MAX_AGE} years, got {cells['age']!r}; fill it in, or take"
            " the row out"
        )
    if not site:
        raise InputError(f"expected a site, got {cells['site']!r}; fill it in")
    group = given[options.group] if options.group else name
    if not group:
        raise InputError(f"expected a person in column {options.group}, got a blank; fill it in")
    image = _image(options, root, name, given.get("file", ""))
    person = {"age": age, "site": site, "group": group, "image": image}
    if "sex" in given:
        person["sex"] = given["sex"]
    return name, person


def _image(options: _Options, root: Path, name: str, file: str) -> str:
    """The volume of an id, as a path below the folder."""
    bare = name.removeprefix("sub-")
    if not _is_below(file):
        raise InputError(f"expected a file below the table's folder, got {file!r}")
    if file:
        places = [file]
    elif options.image:
        places = [f"{name}/{options.image}"]
    else:
        places = [place.format(bare) + suffix for place in _PLACES for suffix in _SUFFIXES]
    for place in places:
        if (root / place).is_file():
            return place
    more = f", nor one of the {len(places) - 1} other names" if len(places) > 1 else ""
    raise InputError(f"{str(root / places[0])!r} is missing{more}; copy it again, or give its name")


def _is_below(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts


SOURCE = DatasetSource(
    name="brain_age",
    summary=(
        "ages from T1 volumes of brains, several sites (a folder in the manner of BIDS); licences"
        " of their own, bids-specification.readthedocs.io"
    ),
    needs_root=True,
    channels=1,
    labels=(),
    size=SIZE,
    load=load,
    check=check,
    read=read,
    target_name="age (years)",
    licence="that of the data sets that the folder was made of",
    citation="what the data sets that the folder was made of ask for",
)
