import zlib

import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets.metaimage import decode_pixels, read_header

# As the Insight Toolkit writes one: 3 columns, 2 rows.
HEADER = """\
ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.308 0.154 1.54
DimSize = 3 2 1
ElementType = MET_UCHAR
ElementDataFile = a.raw
"""
PIXELS = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.mhd").write_text(HEADER)
    return tmp_path / "a.mhd"


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_rows_follow_each_other(path):
    header = read_header(path)
    assert (header.shape, header.data_path) == ((2, 3), path.parent / "a.raw")
    np.testing.assert_array_equal(decode_pixels(header, bytes([10, 20, 30, 40, 50, 60])), PIXELS)


def test_two_axes_and_packed_pixels_are_read(path):
    rewrite(path, "NDims = 3", "NDims = 2")
    rewrite(path, "DimSize = 3 2 1", "DimSize = 3 2")
    rewrite(path, "CompressedData = False", "CompressedData = True")
    header = read_header(path)
    np.testing.assert_array_equal(decode_pixels(header, zlib.compress(PIXELS.tobytes())), PIXELS)


@pytest.mark.parametrize(
    "name",
    [
        "../a.raw",
        "/etc/passwd",
        "b/a.raw",
        "b\\a.raw",
        "..",
        ".",
        ".a",
        "C:a",
        "a.raw b",
        "LIST %d",
    ],
)
def test_data_file_in_another_folder_is_refused(path, name):
    rewrite(path, "ElementDataFile = a.raw", f"ElementDataFile = {name}")
    with pytest.raises(InputError, match=r"a\.mhd: ElementDataFile: expected .* bare name .*, got"):
        read_header(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ObjectType = Image", "ObjectType = Mesh", "ObjectType: expected Image, got 'Mesh'"),
        ("ObjectType = Image\n", "", "ObjectType: expected Image, got none"),
        ("NDims = 3", "NDims = 4", "NDims: expected 2 or 3, got '4'"),
        ("NDims = 3", "NDims = 2", "DimSize: expected 2 lengths of axes, got '3 2 1'"),
        ("DimSize = 3 2 1\n", "", "DimSize: expected 3 lengths of axes, got none"),
        ("DimSize = 3 2 1", "DimSize = 3 2 5", "DimSize: expected one picture of at most"),
        ("DimSize = 3 2 1", "DimSize = 99999 99999 1", "DimSize: expected one picture of at most"),
        ("DimSize = 3 2 1", "DimSize = -3 2 1", "DimSize: expected 3 lengths of axes, got '-3 2"),
        ("MET_UCHAR", "MET_SHORT", "ElementType: expected MET_UCHAR, got 'MET_SHORT'"),
        ("CompressedData = False", "CompressedData = no", "CompressedData: expected True or False"),
        ("BinaryData = True", "BinaryData = False", "BinaryData: expected True, got 'False'"),
        ("Offset = 0 0 0", "HeaderSize = -1", "HeaderSize: expected 0, got '-1'"),
        ("Offset = 0 0 0", "ElementNumberOfChannels = 3", "ElementNumberOfChannels: expected 1"),
        ("ElementDataFile = a.raw\n", "", "ElementDataFile: expected as the last tag"),
        ("ElementDataFile = a.raw", "ElementDataFile = a.raw\nB = 1", "ElementDataFile: expected"),
        ("Offset = 0 0 0", "NDims = 3", "line 7: expected a MetaImage tag, each once"),
        ("Offset = 0 0 0", "no tag", "line 7: expected a MetaImage tag, each once.*got 'no tag'"),
        ("Offset = 0 0 0", f"Comment = {'x' * 20_000}", "expected a MetaImage header of a few"),
    ],
)
def test_other_headers_are_refused(path, old, new, message):
    rewrite(path, old, new)
    with pytest.raises(InputError, match=rf"a\.mhd: .*{message}"):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"12345", b"1234567"])
def test_another_number_of_pixels_is_refused(path, data):
    message = rf"a\.raw: got {len(data)} pixels, expected 6, the 3 x 2 of a\.mhd"
    with pytest.raises(InputError, match=message):
        decode_pixels(read_header(path), data)


def test_broken_packed_pixels_are_refused(path):
    rewrite(path, "CompressedData = False", "CompressedData = True")
    header, packed = read_header(path), zlib.compress(PIXELS.tobytes())
    for data in (PIXELS.tobytes(), packed[:-1], packed[:5], b""):
        with pytest.raises(InputError, match=r"a\.raw: expected pixels packed by zlib.*truncated"):
            decode_pixels(header, data)
    with pytest.raises(InputError, match=r"a\.raw: got 4 pixels, expected 6"):
        decode_pixels(header, zlib.compress(b"1234"))
    with pytest.raises(InputError, match=r"a\.raw: got more pixels, expected 6"):
        decode_pixels(header, zlib.compress(bytes(10**7)))
