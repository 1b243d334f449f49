import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import files
from trainables.datasets.files import attribute_columns, decode_grey, decode_image


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
    with pytest.raises(InputError, match="expected a complete BMP, GIF, JPEG, PNG, TIFF image"):
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
    pixels, labels = files.resize_pair(Path("x"), image, mask, (4, 4))
    np.testing.assert_array_equal(labels[:, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(pixels[0, :, 0], np.float32([1, 1, -1, -1]))


def test_resize_to_another_shape_keeps_proportions():
    image = np.zeros((10, 10, 3), np.uint8)
    pixels, labels = files.resize_pair(Path("x"), image, np.ones((10, 10), np.uint8), (10, 20))
    assert pixels.shape == (3, 10, 20)
    np.testing.assert_array_equal(labels[0], [0] * 5 + [1] * 10 + [0] * 5)


def test_resize_refuses_pairs_of_different_size_and_needles():
    image = np.zeros((1, 9000, 3), np.uint8)
    with pytest.raises(InputError, match="image is 9000 x 1 pixels, its mask 5 x 5"):
        files.resize_pair(Path("x"), image, np.zeros((5, 5), np.uint8), (8, 8))
    with pytest.raises(InputError, match="too thin to be padded"):
        files.resize_pair(Path("x"), image, np.zeros((1, 9000), np.uint8), (8, 8))


def test_reading_a_missing_or_huge_file_names_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"gone\.bmp: cannot be read \(No such file"):
        files.read_bytes(tmp_path / "gone.bmp")
    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 4)
    with pytest.raises(InputError, match="5 bytes, expected at most 4"):
        files.read_bytes(tmp_path / "a")


def test_text_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(InputError, match="expected UTF-8 text"):
        files.read_rows(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('"' + "x" * 200_000)
    with pytest.raises(InputError, match="expected a comma-separated table"):
        files.read_rows(tmp_path / "b.csv")


def test_digest_of_files_covers_names_size_and_content_but_not_the_order_or_the_root():
    root, here = Path("root"), Path("root/a/1.png")
    hashes = [(here, "11"), (root / "2.png", "22")]
    digest = files.digest_files("made", (4, 5), root, hashes)
    text = "made\n4x5\n2.png 22\na/1.png 11"
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert digest == files.digest_files("made", (4, 5), root, hashes[::-1])
    moved = [(Path("else") / path.relative_to(root), value) for path, value in hashes]
    assert digest == files.digest_files("made", (4, 5), Path("else"), moved)
    others = [
        files.digest_files("made", (5, 4), root, hashes),
        files.digest_files("other", (4, 5), root, hashes),
        files.digest_files("made", (4, 5), root, [(here, "12"), hashes[1]]),
        files.digest_files("made", (4, 5), root, [(root / "a/3.png", "11"), hashes[1]]),
    ]
    assert len({digest, *others}) == 5


def test_pictures_in_colour_give_grey_values():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for mode in ("L", "RGB", "LA", "RGBA"):
        stream = io.BytesIO()
        Image.fromarray(grey).convert(mode).save(stream, "PNG")
        np.testing.assert_array_equal(decode_grey(Path("x"), stream.getvalue()), grey)
    with pytest.raises(InputError, match=r"a\.png: more than 100 pixels"):
        decode_grey(Path("a.png"), encode(grey), max_pixels=100)


def test_columns_of_attributes_are_numbers_where_all_given_fields_are():
    rows = {"a": {"age": "71.5", "site": "1", "code": "007"}, "c": {"site": "x", "empty": ""}}
    columns = attribute_columns(rows, ("c", "b", "a"))
    assert set(columns) == {"age", "site", "code"}
    np.testing.assert_array_equal(columns["age"], [np.nan, np.nan, 71.5])
    assert columns["site"] == ("x", "", "1")
    assert columns["code"] == ("", "", "007")
