"""Hand-written digits from up to five domains, grey, to leave one domain out.

Sources: MNIST (LeCun, Cortes, Burges); optdigits (Alpaydin, Kaynak 1998, UCI, CC BY 4.0, as
scikit-learn's `load_digits` has it); SVHN (Netzer et al. 2011); USPS (Hull 1994, in LIBSVM's
format); MNIST-M (Ganin et al. 2016, JMLR 17(59), 1-35, arXiv:1505.07818).

Layout below the root, of the domains that are there, in this order; all files of a domain are
needed:
- `mnist`: `MNIST/raw/train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`,
  plain or `.gz`
- `optdigits`: `optdigits.npz` with `images` (n, 8, 8), 0 to 16, and `labels`
- `svhn`: `train_32x32.mat`, `test_32x32.mat`
- `usps`: `usps.bz2`, `usps.t.bz2`
- `mnistm`: `mnist_m_train_labels.txt` with lines `NAME.png 5`, the folder `mnist_m_train`, and the
  same of `mnist_m_test`, all of it in `mnist_m` or not

MNIST-M shows digits of MNIST on photographs: who leaves one of the two out has seen the
handwriting in the other.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import (
    MAX_PIXELS,
    DatasetReport,
    DatasetSource,
    ImageDataset,
    ReadImage,
    Size,
    no_masks,
    require_size,
)
from trainables.datasets.digit_formats import (
    Digits,
    read_idx,
    read_libsvm,
    read_mat,
    read_npz,
)
from trainables.datasets.files import (
    Listing,
    decode_image,
    digest_files,
    open_listing,
    read_bytes,
    require_no_problems,
    resize_image,
)

DOMAIN_NAMES = ("mnist", "optdigits", "svhn", "usps", "mnistm")
CLASS_NAMES = tuple("0123456789")
SIZE = (32, 32)
MAX_PER_DOMAIN = 2000

_SEED = 0
_MNISTM_SHAPE = (32, 32, 3)
# A name holds no slash, so that no line leads out of the folder.
_LINE = re.compile(r"([\w-]+\.png) +([0-9])", re.ASCII)

_ReadBytes: TypeAlias = Callable[[Path], bytes]


@dataclass(frozen=True, eq=False)
class _Pictures:
    """What a part of a domain holds.

    Attributes:
        labels: (k,) digits.
        at: the picture of an index, (H, W) grey or (H, W, 3) colours.
    """

    labels: NDArray[np.int64]
    at: Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Part:
    """The files of a domain that are read together.

    Attributes:
        domain: one of `DOMAIN_NAMES`.
        name: in ids.
        files: below the root.
        open: reads them.
    """

    domain: str
    name: str
    files: tuple[str, ...]
    open: Callable[[Sequence[Path], _ReadBytes], _Pictures]

    def paths(self, root: Path) -> list[Path]:
        """Where the files are, or would be."""
        return [
            next(
                (path for path in (root / f, root / f"{f}.gz", root / "mnist_m" / f) if _is(path)),
                root / f,
            )
            for f in self.files
        ]


def _is(path: Path) -> bool:
    # Unlike `exists`, this tells what is there and cannot be looked at.
    return os.path.lexists(path)


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    max_per_domain: int = MAX_PER_DOMAIN,
) -> ImageDataset:
    """Load the domains that are there, colours as grey, resized; there are no label maps.

    Args:
        root: folder with the layout above.
        size: (H, W) to return.
        max_per_domain: digits of each domain, drawn at random, always the same; 0 for all.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("digits", size)
    _require_max_per_domain(max_per_domain)
    listing = open_listing("digits", root, _listing)
    require_no_problems("digits", listing)
    present = _present(listing.root)
    hashes: list[tuple[Path, str]] = []

    def read(path: Path) -> bytes:
        data = read_bytes(path)
        hashes.append((path, hashlib.sha256(data).hexdigest()))
        return data

    ids: list[str] = []
    images: list[NDArray[np.float32]] = []
    classes: list[int] = []
    domains: list[int] = []
    for domain, (name, parts) in enumerate(present.items()):
        opened = [(part, paths[0], part.open(paths, read)) for part, paths in parts]
        places = [(*each, k) for each in opened for k in range(len(each[2].labels))]
        for place in _drawn(name, len(places), max_per_domain):
            part, path, pictures, k = places[place]
            ids.append(f"{name}/{part.name}/{k:05d}")
            images.append(resize_image(path, _grey(pictures.at(k)), size))
            classes.append(int(pictures.labels[k]))
            domains.append(domain)
    pixels = np.stack(images)
    return ImageDataset(
        name="digits",
        images=pixels,
        masks=no_masks(pixels),
        labels=(),
        ids=tuple(ids),
        domains=np.array(domains, dtype=np.int64),
        domain_names=tuple(present),
        classes=np.array(classes, dtype=np.int64),
        targets=np.full(len(ids), np.nan),
        digest=digest_files(f"digits {max_per_domain}", size, listing.root, hashes),
    )


def check(root: Path) -> DatasetReport:
    """Read every digit below `root` and report."""
    try:
        listing = open_listing("digits", root, _listing)
    except InputError as error:
        return DatasetReport(0, (str(error),), {})
    problems = list(listing.problems)
    counts: dict[str, Counter[str]] = {}
    for name, parts in _present(listing.root).items():
        counts[name] = Counter()
        for part, paths in parts:
            if all(map(_is, paths)):
                counts[name].update(_usable(part, paths, problems))
    return DatasetReport(
        sum(each.total() for each in counts.values()),
        tuple(problems),
        {
            "domains": {name: each.total() for name, each in counts.items()},
            "classes": {name: dict(sorted(each.items())) for name, each in counts.items()},
        },
    )


def _usable(part: _Part, paths: Sequence[Path], problems: list[str]) -> Iterable[str]:
    """The class of every digit that can be read; adds why others cannot."""
    try:
        pictures = part.open(paths, read_bytes)
    except InputError as error:
        problems.append(str(error))
        return
    for k, label in enumerate(pictures.labels):
        try:
            pictures.at(k)
        except InputError as error:
            problems.append(str(error))
        else:
            yield CLASS_NAMES[label]


def read(
    path: Path, data: bytes, *, size: Size, max_pixels: int = MAX_PIXELS, **_: Any
) -> ReadImage:
    """One more picture as `load` makes it of its own; see `DatasetSource.read`.

    Raises:
        InputError: as `decode_image` and `resize_image` do.
    """
    image = decode_image(path, data, "RGB", max_pixels=max_pixels)
    return ReadImage(resize_image(path, _grey(image), size))


def _require_max_per_domain(max_per_domain: Any) -> None:
    is_whole = isinstance(max_per_domain, (int, np.integer)) and not isinstance(
        max_per_domain, bool
    )
    if not is_whole or max_per_domain < 0:
        raise InputError(
            "dataset.options.max_per_domain of digits: expected a whole number, 0 for all, got"
            f" {max_per_domain!r}"
        )


def _drawn(domain: str, n: int, limit: int) -> NDArray[np.int64]:
    """Sorted indices; those of a domain do not depend on which others are there."""
    if limit == 0 or limit >= n:
        return np.arange(n)
    rng = np.random.default_rng((_SEED, DOMAIN_NAMES.index(domain)))
    return np.sort(rng.choice(n, limit, replace=False))


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    if picture.ndim == 2:
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"))


def _present(root: Path) -> dict[str, list[tuple[_Part, list[Path]]]]:
    """The parts of every domain of which any file is there."""
    found: dict[str, list[tuple[_Part, list[Path]]]] = {}
    for part in _PARTS:
        found.setdefault(part.domain, []).append((part, part.paths(root)))
    return {
        domain: parts
        for domain, parts in found.items()
        if any(_is(path) for _, paths in parts for path in paths)
    }


def _listing(root: Path) -> Listing:
    """What is wrong with the layout; samples are not listed, as files hold many."""
    present = _present(root)
    if not present:
        return Listing(
            root,
            (),
            (
                f"digits: {str(root)!r} holds no digits; dataset.root must hold one or more of"
                " MNIST/raw, optdigits.npz, train_32x32.mat, usps.bz2 and mnist_m_train_labels.txt,"
                " each with the other files of its release",
            ),
        )
    problems = tuple(
        f"digits: {str(path)!r} is missing, but other files of {domain} are there; copy the"
        " official files again"
        for domain, parts in present.items()
        for _, paths in parts
        for path in paths
        if not _is(path)
    )
    return Listing(root, (), problems)


def _of_arrays(digits: Digits) -> _Pictures:
    images, labels = digits
    return _Pictures(labels, images.__getitem__)


def _open_idx(paths: Sequence[Path], read: _ReadBytes) -> _Pictures:
    images, labels = paths
    return _of_arrays(read_idx(images, read(images), labels, read(labels)))


def _open_one(
    reader: Callable[[Path, bytes], Digits],
) -> Callable[[Sequence[Path], _ReadBytes], _Pictures]:
    return lambda paths, read: _of_arrays(reader(paths[0], read(paths[0])))


def _open_pngs(paths: Sequence[Path], read: _ReadBytes) -> _Pictures:
    """A list of names and digits, and the folder of these pictures; they are read one by one."""
    path, folder = paths
    names, labels = [], []
    for number, line in enumerate(read(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"{path}: line {number}: expected NAME.png and a digit, got {line[:40]!r}; copy the"
                " original again"
            )
        names.append(match[1])
        labels.append(int(match[2]))
    try:
        there = {each.name for each in folder.glob("[!.]*.png")}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    odd = sorted(there.symmetric_difference(names))
    if odd or len(names) != len(there) or not names:
        raise InputError(
            f"{path}: {len(names)} lines, and {len(there)} PNG files in {str(folder)!r}"
            f"{f', {odd[0]} in one of them only' if odd else ''}; expected every picture once, copy"
            " the original again"
        )

    def at(index: int) -> NDArray[np.uint8]:
        file = folder / names[index]
        picture = decode_image(file, read(file), "RGB", max_pixels=32 * 32)
        if picture.shape != _MNISTM_SHAPE:
            raise InputError(
                f"{file}: {picture.shape[1]} x {picture.shape[0]} pixels, expected 32 x 32; copy"
                " the original again"
            )
        return picture

    return _Pictures(np.array(labels, dtype=np.int64), at)


_PARTS = (
    *(
        _Part(
            "mnist",
            name,
            (f"MNIST/raw/{prefix}-images-idx3-ubyte", f"MNIST/raw/{prefix}-labels-idx1-ubyte"),
            _open_idx,
        )
        for name, prefix in (("train", "train"), ("test", "t10k"))
    ),
    _Part("optdigits", "all", ("optdigits.npz",), _open_one(read_npz)),
    *(
        _Part("svhn", name, (f"{name}_32x32.mat",), _open_one(read_mat))
        for name in ("train", "test")
    ),
    _Part("usps", "train", ("usps.bz2",), _open_one(read_libsvm)),
    _Part("usps", "test", ("usps.t.bz2",), _open_one(read_libsvm)),
    *(
        _Part("mnistm", name, (f"mnist_m_{name}_labels.txt", f"mnist_m_{name}"), _open_pngs)
        for name in ("train", "test")
    ),
)


SOURCE = DatasetSource(
    name="digits",
    summary=(
        "hand-written digits, up to five domains (MNIST, optdigits, SVHN, USPS, MNIST-M), grey;"
        " optdigits CC BY 4.0, the others as their authors say"
    ),
    needs_root=True,
    channels=1,
    labels=(),
    size=SIZE,
    load=load,
    check=check,
    read=read,
    class_names=CLASS_NAMES,
    licence="of each domain its own: optdigits CC BY 4.0, SVHN for non-commercial use",
    citation=(
        "LeCun, Cortes, Burges, The MNIST database of handwritten digits. Alpaydin, Kaynak (1998),"
        " Optical recognition of handwritten digits, UCI, doi:10.24432/C50P49. Netzer et al."
        " (2011), Reading digits in natural images with unsupervised feature learning, NIPS"
        " workshop. Hull (1994), A database for handwritten text recognition research, IEEE TPAMI"
        " 16, 550-554, doi:10.1109/34.291440. Ganin et al. (2016), Domain-adversarial training of"
        " neural networks, JMLR 17(59), 1-35"
    ),
)
