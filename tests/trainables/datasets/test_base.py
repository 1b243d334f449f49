import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import base
from trainables.datasets.base import ImageDataset, decode_image, split_indices


def make_dataset(n=50, domains=None, groups=(), **changes):
    fields = {
        "name": "made",
        "images": np.linspace(-1, 1, n * 16, dtype=np.float32).reshape(n, 1, 4, 4),
        "masks": (np.arange(n * 16, dtype=np.uint8) % 3).reshape(n, 4, 4),
        "labels": ("a", "b"),
        "ids": tuple(f"id{index}" for index in range(n)),
        "domains": np.zeros(n, np.int64) if domains is None else np.asarray(domains),
        "domain_names": ("x", "y", "z"),
        "classes": np.arange(n),
        "targets": np.arange(n) / 2,
        "groups": groups,
        "digest": "0" * 64,
    }
    return ImageDataset(**{**fields, **changes})


def encode(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def png_header(width, height):
    """A picture whose header promises pixels that do not follow."""
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def test_groups_default_to_ids_and_repr_is_one_line():
    dataset = make_dataset(n=5)
    assert dataset.groups == dataset.ids
    assert len(dataset) == 5
    expected = (
        "ImageDataset('made', images=(5, 1, 4, 4), labels=2, domains=3, digest='000000000000')"
    )
    assert repr(dataset) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((4, 4, 4), np.uint8)}, "masks: expected one row per id"),
        ({"groups": ("one",)}, "groups: expected one row per id"),
        ({"masks": np.zeros((5, 4, 3), np.uint8)}, r"expected images \(n, C, \*spatial\)"),
        ({"ids": ("same",) * 5}, "ids must differ"),
        ({"images": np.full((5, 1, 4, 4), np.nan, np.float32)}, "finite and in"),
        ({"images": np.full((5, 1, 4, 4), 1.5, np.float32)}, "finite and in"),
        ({"masks": np.full((5, 4, 4), 3, np.uint8)}, "masks hold 3, but 2 labels"),
        ({"domains": np.full(5, 3)}, "indices into domain_names"),
    ],
)
def test_broken_invariants_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(n=5, **changes)


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        make_dataset(n=0)


def test_subset_takes_rows_in_the_order_given_and_has_a_digest_of_its_own():
    dataset = make_dataset(n=6, domains=[0, 1, 2, 0, 1, 2], groups=tuple("aabbcc"))
    part = dataset.subset([4, 1])
    assert part.ids == ("id4", "id1")
    assert part.groups == ("c", "a")
    np.testing.assert_array_equal(part.images, dataset.images[[4, 1]])
    np.testing.assert_array_equal(part.masks, dataset.masks[[4, 1]])
    np.testing.assert_array_equal(part.domains, [1, 1])
    np.testing.assert_array_equal(part.classes, [4, 1])
    np.testing.assert_array_equal(part.targets, [2.0, 0.5])
    digests = {dataset.digest, part.digest, dataset.subset(np.array([1, 4])).digest}
    assert len(digests) == 3
    assert dataset.subset([4, 1]).digest == part.digest


def test_splits_are_sorted_disjoint_complete_and_of_the_right_share():
    splits = split_indices(make_dataset(n=100), seed=0)
    assert {name: len(indices) for name, indices in splits.items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(100))
    assert all((np.diff(indices) > 0).all() for indices in splits.values())


def test_split_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (split_indices(make_dataset(), seed=seed) for seed in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("seed", range(5))
def test_split_shares_hold_in_every_domain_to_within_two_images(seed):
    domains = np.repeat([0, 1, 2], [70, 13, 37])
    dataset = make_dataset(n=120, domains=domains)
    for name, indices in split_indices(dataset, seed=seed).items():
        counts = np.bincount(domains[indices], minlength=3)
        shares = base.SPLIT_PERCENTAGES[name] / 100 * np.array([70, 13, 37])
        assert (np.abs(counts - shares) < 2).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_split_cuts_a_group(seed):
    groups = tuple(f"person{index // 3}" for index in range(50))
    dataset = make_dataset(n=50, groups=groups)
    people = [
        {groups[i] for i in indices} for indices in split_indices(dataset, seed=seed).values()
    ]
    assert sum(map(len, people)) == len(set(groups))


def test_too_few_groups_for_three_splits_are_refused():
    dataset = make_dataset(n=50, groups=("one", "two") * 25)
    with pytest.raises(InputError, match="split 'val' would be empty, 50 images in 2 groups"):
        split_indices(dataset, seed=0)


def test_decode_image_returns_stored_values():
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(Path("x"), encode(colours), "RGB"), colours)
    np.testing.assert_array_equal(
        decode_image(Path("x"), encode(colours[..., 0]), "L"), colours[..., 0]
    )


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (60_000, 60_000)])
def test_gigantic_image_is_refused_before_it_is_decoded(width, height):
    with pytest.raises(InputError, match=r"big\.png: more than 64000000 pixels.*shrink it"):
        decode_image(Path("big.png"), png_header(width, height), "L")


def test_broken_and_truncated_images_are_refused():
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), "BMP")
    for broken in (b"", b"no image", data[:10], data[:1000], png_header(5, 5)):
        with pytest.raises(InputError, match=r"a\.bmp: expected a complete .*copy the original"):
            decode_image(Path("a.bmp"), broken, "RGB")


def test_formats_that_start_programs_are_not_decoded():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match="expected a complete BMP, GIF, JPEG, PNG image"):
        decode_image(Path("a.bmp"), script, "RGB")


def test_other_pixel_types_are_refused():
    deep = encode(np.zeros((4, 4), np.uint16))
    with pytest.raises(InputError, match="8-bit colour image, got pixel type 'I;16'"):
        decode_image(Path("a.png"), deep, "RGB")
    with pytest.raises(InputError, match="8-bit grey image, got pixel type 'RGB'"):
        decode_image(Path("a.png"), encode(np.zeros((4, 4, 3), np.uint8)), "L")


def test_resize_pads_centrally_with_edge_and_background():
    image = np.full((2, 4, 3), 255, np.uint8)
    image[1] = 0
    mask = np.ones((2, 4), np.uint8)
    pixels, labels = base.resize_pair(Path("x"), image, mask, (4, 4))
    np.testing.assert_array_equal(labels[:, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(pixels[0, :, 0], np.float32([1, 1, -1, -1]))


def test_resize_to_another_shape_keeps_proportions():
    image = np.zeros((10, 10, 3), np.uint8)
    pixels, labels = base.resize_pair(Path("x"), image, np.ones((10, 10), np.uint8), (10, 20))
    assert pixels.shape == (3, 10, 20)
    np.testing.assert_array_equal(labels[0], [0] * 5 + [1] * 10 + [0] * 5)


def test_resize_refuses_pairs_of_different_size_and_needles():
    image = np.zeros((1, 9000, 3), np.uint8)
    with pytest.raises(InputError, match="image is 9000 x 1 pixels, its mask 5 x 5"):
        base.resize_pair(Path("x"), image, np.zeros((5, 5), np.uint8), (8, 8))
    with pytest.raises(InputError, match="too thin to be padded"):
        base.resize_pair(Path("x"), image, np.zeros((1, 9000), np.uint8), (8, 8))


def test_reading_a_missing_or_huge_file_names_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"gone\.bmp: cannot be read \(No such file"):
        base.read_bytes(tmp_path / "gone.bmp")
    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(base, "MAX_FILE_BYTES", 4)
    with pytest.raises(InputError, match="5 bytes, expected at most 4"):
        base.read_bytes(tmp_path / "a")


def test_text_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(InputError, match="expected UTF-8 text"):
        base.read_rows(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('"' + "x" * 200_000)
    with pytest.raises(InputError, match="expected a comma-separated table"):
        base.read_rows(tmp_path / "b.csv")


@pytest.mark.parametrize("size", [(64,), (64, 64, 64), (64, 3), (64.0, 64), ("64", "64")])
def test_sizes_of_another_kind_are_refused(size):
    with pytest.raises(InputError, match="size must be 2 whole numbers of at least 4"):
        base.require_size("made", size)


def test_gigantic_size_is_refused():
    with pytest.raises(InputError, match="above 64000000 pixels"):
        base.require_size("made", (10_000, 10_000))


def test_digest_of_files_covers_names_size_and_content_but_not_the_order_or_the_root():
    root, here = Path("root"), Path("root/a/1.png")
    files = [(here, "11"), (root / "2.png", "22")]
    digest = base.digest_files("made", (4, 5), root, files)
    text = "made\n4x5\n2.png 22\na/1.png 11"
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert digest == base.digest_files("made", (4, 5), root, files[::-1])
    moved = [(Path("else") / path.relative_to(root), value) for path, value in files]
    assert digest == base.digest_files("made", (4, 5), Path("else"), moved)
    others = [
        base.digest_files("made", (5, 4), root, files),
        base.digest_files("other", (4, 5), root, files),
        base.digest_files("made", (4, 5), root, [(here, "12"), files[1]]),
        base.digest_files("made", (4, 5), root, [(root / "a/3.png", "11"), files[1]]),
    ]
    assert len({digest, *others}) == 5
