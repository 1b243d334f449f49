import bz2
import gzip
import io
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from search_spaces.errors import InputError
from trainables.datasets import digit_formats, digits

N = 12
LABELS = np.arange(N, dtype=np.uint8) % 10
# Files of each domain, and one of each that can be damaged by cutting it.
DOMAINS = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte.gz",
    "optdigits": "optdigits.npz",
    "svhn": "train_32x32.mat",
    "usps": "usps.bz2",
    "mnistm": "mnist_m/mnist_m_train_labels.txt",
}


def pixels(*shape, top=256, seed=0):
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


def idx(values):
    return struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + (
        values.tobytes()
    )


def libsvm(labels, images):
    rows = [
        f"{label} " + " ".join(f"{k}:{value:.6g}" for k, value in enumerate(row, start=1))
        for label, row in zip(labels, images.reshape(len(images), -1), strict=True)
    ]
    return ("\n".join(rows) + "\n").encode()


def write_mat(path, x, y, **options):
    savemat(path, {"X": x, "y": y}, **options)


def write_files(root):
    """Twelve digits in each part of every domain."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, name in enumerate(("train", "t10k")):
        images = gzip.compress(idx(pixels(N, 28, 28, seed=seed)))
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    np.savez(root / "optdigits.npz", images=pixels(N, 8, 8, top=17), labels=LABELS)
    for name in ("train", "test"):
        y = np.where(LABELS == 0, 10, LABELS)[:, None]
        write_mat(root / f"{name}_32x32.mat", pixels(32, 32, 3, N), y, do_compression=True)
        folder = root / "mnist_m" / f"mnist_m_{name}"
        folder.mkdir(parents=True)
        for k, label in enumerate(LABELS):
            Image.fromarray(pixels(32, 32, 3, seed=k)).save(folder / f"{k:08d}.png")
            with (folder.parent / f"mnist_m_{name}_labels.txt").open("a") as stream:
                stream.write(f"{k:08d}.png {label}\n")
    for name in ("usps.bz2", "usps.t.bz2"):
        values = pixels(N, 256) / 127.5 - 1
        (root / name).write_bytes(bz2.compress(libsvm(LABELS + 1, values)))


@pytest.fixture
def root(tmp_path):
    write_files(tmp_path)
    return tmp_path


def only(root, domain):
    """Leave the files of one domain."""
    keep = (root / DOMAINS[domain]).relative_to(root).parts[0]
    prefix = {"usps.bz2": "usps", "train_32x32.mat": "t"}.get(keep, keep)
    for path in root.iterdir():
        is_kept = path.name.startswith(prefix)
        if not is_kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return root / DOMAINS[domain]


def test_all_domains_in_their_order(root):
    dataset = digits.load(root)
    assert dataset.domain_names == digits.DOMAIN_NAMES
    np.testing.assert_array_equal(np.bincount(dataset.domains), [24, 12, 24, 24, 24])
    np.testing.assert_array_equal(dataset.classes, np.tile(LABELS, 9))
    assert dataset.images.shape == (108, 1, 32, 32)
    assert dataset.ids[0] == "mnist/train/00000"
    assert dataset.ids[-1] == "mnistm/test/00011"
    assert dataset.labels == digits.SOURCE.labels == ()
    assert dataset.masks.max() == 0
    assert digits.SOURCE.class_names == tuple("0123456789")


def test_grey_values_are_scaled(root):
    only(root, "mnist")
    images = digits.load(root, size=(28, 28)).images[:N, 0]
    expected = pixels(N, 28, 28) / 127.5 - 1
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)


def test_optdigits_are_scaled_from_16(root):
    only(root, "optdigits")
    images = digits.load(root, size=(8, 8)).images[:, 0]
    # Rounded to 255 grey values on the way.
    np.testing.assert_allclose(images, pixels(N, 8, 8, top=17) / 8 - 1, atol=0.51 / 127.5)


def test_usps_is_scaled_from_minus_1(root):
    only(root, "usps")
    images = digits.load(root, size=(16, 16)).images[:N, 0]
    expected = pixels(N, 256).reshape(N, 16, 16) / 127.5 - 1
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)


def test_usps_that_omits_zeros_is_read(root):
    only(root, "usps").write_bytes(bz2.compress(b"3 1:1 256:-1\n\n"))
    dataset = digits.load(root, size=(16, 16))
    assert dataset.classes[0] == 2
    flat = dataset.images[0].ravel()
    np.testing.assert_allclose(flat[[0, 255]], [1, -1])
    np.testing.assert_allclose(flat[1:255], 0, atol=0.51 / 127.5)


@pytest.mark.parametrize("domain", ["svhn", "mnistm"])
def test_colours_become_grey(root, domain):
    only(root, domain)
    stored = pixels(32, 32, 3, N)[..., 0] if domain == "svhn" else pixels(32, 32, 3)
    expected = stored @ [0.299, 0.587, 0.114] / 127.5 - 1
    # Pillow rounds the grey value.
    np.testing.assert_allclose(digits.load(root).images[0, 0], expected, atol=0.51 / 127.5)


@pytest.mark.parametrize("domain", DOMAINS)
def test_one_domain_is_enough(root, domain):
    only(root, domain)
    assert digits.load(root).domain_names == (domain,)


def test_mnist_m_may_lie_beside_the_others(root):
    for path in only(root, "mnistm").parent.iterdir():
        shutil.move(path, root)
    assert len(digits.load(root)) == 24


def test_drawing_is_fixed_and_does_not_depend_on_other_domains(root):
    whole, some = digits.load(root, max_per_domain=0), digits.load(root, max_per_domain=5)
    np.testing.assert_array_equal(np.bincount(some.domains), [5] * 5)
    assert some.ids == digits.load(root, max_per_domain=5).ids
    places = [whole.ids.index(each) for each in some.ids]
    assert places == sorted(places)
    np.testing.assert_array_equal(some.images, whole.images[places])
    np.testing.assert_array_equal(some.classes, whole.classes[places])
    only(root, "svhn")
    alone = digits.load(root, max_per_domain=5).ids
    assert alone == tuple(each for each in some.ids if each.startswith("svhn"))


@pytest.mark.parametrize("number", [-1, 2.5, "4", True, None])
def test_another_limit_is_refused(root, number):
    with pytest.raises(InputError, match="max_per_domain of digits: expected a whole number"):
        digits.load(root, max_per_domain=number)


def test_digest_follows_content_size_and_limit_and_not_the_place(root, tmp_path_factory):
    digest = digits.load(root).digest
    assert digest == digits.load(root).digest
    assert digest != digits.load(root, size=(28, 28)).digest
    assert digest != digits.load(root, max_per_domain=20).digest
    copy = tmp_path_factory.mktemp("copy") / "digits"
    shutil.copytree(root, copy)
    assert digits.load(str(copy)).digest == digest
    Image.fromarray(pixels(32, 32, 3, seed=9)).save(copy / "mnist_m/mnist_m_train/00000000.png")
    assert digits.load(copy).digest != digest


@pytest.mark.parametrize(
    "name",
    [
        "MNIST/raw/t10k-images-idx3-ubyte.gz",
        "test_32x32.mat",
        "usps.t.bz2",
        "mnist_m/mnist_m_test_labels.txt",
    ],
)
def test_half_of_a_domain_is_refused(root, name):
    (root / name).unlink()
    base = name.rpartition("/")[2].removesuffix(".gz")
    with pytest.raises(InputError, match=rf"{base}' is missing, but other files of"):
        digits.load(root)
    report = digits.check(root)
    assert (len(report.problems), report.num_images) == (1, 96)


def test_several_missing_files_are_counted(root):
    (root / "test_32x32.mat").unlink()
    (root / "usps.bz2").unlink()
    with pytest.raises(InputError, match=r"and 1 more: explorer datasets check digits --root DIR"):
        digits.load(root)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2 - 5], lambda data: b"no digits", lambda data: b""]
)
def test_cut_files_are_refused(root, domain, damage):
    path = only(root, domain)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=path.name.replace(".", r"\.")) as refused:
        digits.load(root)
    report = digits.check(root)
    assert report.problems == (str(refused.value),)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("domain", ["mnist", "optdigits", "svhn", "usps"])
@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_are_refused_or_read(root, domain, seed):
    rng = np.random.default_rng(seed)
    path = only(root, domain)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data) if seed % 2 else 300, 6):
        data[place] = rng.integers(0, 256)
    path.write_bytes(data)
    report = digits.check(root)
    assert len(report.problems) <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(pixels(N, 28, 28))[:-1], "9407 bytes follow a header that promises 12 of 784"),
        (idx(pixels(N, 28, 28)) + b"0", "9409 bytes follow a header that promises 12 of 784"),
        (idx(pixels(N, 28, 27)), r"28 x 28 pixels, magic number 2051, got 2051 and \[28, 27\]"),
        (b"\0\0\x0d\x03" + idx(pixels(N, 28, 28))[4:], "magic number 2051, got 3331"),
        (idx(pixels(N, 28, 28))[:10], "expected a complete IDX file"),
        (idx(pixels(N - 1, 28, 28)), "11 images and 12 labels, expected the same"),
        (struct.pack(">4I", 2051, 2**32 - 1, 28, 28), "header that promises 4294967295 of 784"),
    ],
)
def test_bad_idx_is_refused(root, data, message):
    only(root, "mnist").write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match=rf"train-images-idx3-ubyte\.gz: .*{message}"):
        digits.load(root)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(N, 10, np.uint8), "labels must be the digits 0 to 9"),
        (LABELS[:, None], "IDX file of labels, magic number 2049, got 2050"),
    ],
)
def test_bad_idx_labels_are_refused(root, labels, message):
    only(root, "mnist")
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(InputError, match=rf"train-labels-idx1-ubyte: .*{message}"):
        digits.load(root)


def test_a_domain_without_digits_is_refused(root):
    only(root, "mnist").write_bytes(gzip.compress(idx(pixels(0, 28, 28))))
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(LABELS[:0]))
    with pytest.raises(InputError, match="0 images and 0 labels, expected the same, at least one"):
        digits.load(root)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(N, 8, 8, top=17)}, "expected a complete npz"),
        ({"images": pixels(N, 8, 7, top=17), "labels": LABELS}, r"images are \(12, 8, 7\)"),
        ({"images": pixels(N, 8, 8), "labels": LABELS}, "pixels must be from 0 to 16"),
        ({"images": np.full((N, 8, 8), np.nan), "labels": LABELS}, "pixels must be from 0"),
        ({"images": pixels(N, 8, 8, top=17), "labels": LABELS + 1}, "must be the digits"),
        ({"images": pixels(N, 8, 8, top=17), "labels": LABELS + 0.5}, "must be the digits"),
        ({"images": pixels(N, 8, 8, top=17), "labels": np.full(N, np.nan)}, "must be the digits"),
        ({"images": pixels(N, 8, 8, top=17), "labels": LABELS[1:]}, "12 images and 11 labels"),
        ({"images": pixels(N, 8, 8, top=17), "labels": LABELS.astype(str)}, "no plain array"),
        ({"images": np.full(N, None), "labels": LABELS}, "no plain array of numbers"),
    ],
)
def test_bad_npz_is_refused(root, arrays, message):
    path = only(root, "optdigits")
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=rf"optdigits\.npz: .*{message}"):
        digits.load(root)


@pytest.mark.parametrize("shape", ["(999999999, 8, 8)", "(12, 8, 7)"])
def test_npz_that_promises_another_size_is_refused(root, shape):
    stream = io.BytesIO()
    np.save(stream, pixels(N, 8, 8, top=17))
    data = stream.getvalue()
    header = data[10:128].replace(b"(12, 8, 8)", shape.encode()).replace(b"  ", b" ")
    with zipfile.ZipFile(only(root, "optdigits"), "w") as archive:
        archive.writestr("images.npy", data[:10] + header.rstrip().ljust(117) + b"\n" + data[128:])
    with pytest.raises(InputError, match="expected a complete npz"):
        digits.load(root)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": pixels(32, 32, 3, N)}, r"and y \(n, 1\), got X .* and y \(0,\)"),
        ({}, r"got X \(0,\) of float64 and y \(0,\); copy the cropped digits"),
        ({"X": pixels(32, 31, 3, N), "y": LABELS[:, None]}, r"got X \(32, 31, 3, 12\) of uint8"),
        ({"X": pixels(32, 32, 3, N) / 255, "y": LABELS[:, None]}, "of float64"),
        ({"X": pixels(32, 32, 3, N), "y": LABELS[None]}, r"y \(1, 12\)"),
        ({"X": pixels(32, 32, 3, N), "y": LABELS[:, None]}, "expected labels from 1 to 10"),
        ({"X": pixels(32, 32, 3, N), "y": LABELS[:, None] + 2}, "expected labels from 1 to 10"),
        ({"X": pixels(32, 32, 3, N), "y": np.full((N, 1), np.nan)}, "labels from 1 to 10"),
        ({"X": pixels(32, 32, 3, N), "y": LABELS[:, None] / 20 + 1}, "must be the digits"),
        ({"X": pixels(32, 32, 3, N), "y": LABELS[:, None][1:] % 9 + 1}, "12 images and 11 labels"),
        ({"X": {"a": 1}, "y": {"b": 2}}, r"got X \(1, 1\) of int32"),
    ],
)
def test_bad_mat_is_refused(root, arrays, message):
    savemat(only(root, "svhn"), arrays)
    with pytest.raises(InputError, match=rf"train_32x32\.mat: .*{message}"):
        digits.load(root)


def test_old_mat_is_refused(root):
    write_mat(only(root, "svhn"), LABELS[:, None], LABELS[:, None], format="4")
    with pytest.raises(InputError, match="expected a complete MATLAB 5 file"):
        digits.load(root)


def test_svhn_without_compression_is_the_same(root):
    path = only(root, "svhn")
    images = digits.load(root).images
    y = np.where(LABELS == 0, 10, LABELS)[:, None].astype(np.float64)
    write_mat(path, pixels(32, 32, 3, N), y)
    np.testing.assert_array_equal(digits.load(root).images, images)


def mat_part(kind, data):
    return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def mat_array(name, shape, kind, data):
    """An array of a big-endian file; its name has the short form."""
    body = mat_part(6, b"\0" * 8) + mat_part(5, struct.pack(f">{len(shape)}i", *shape))
    body += struct.pack(">HH", len(name), 1) + name.ljust(4, b"\0") + mat_part(kind, data)
    return struct.pack(">II", 14, len(body)) + body


def test_svhn_of_the_other_byte_order_is_the_same(root):
    path = only(root, "svhn")
    images = digits.load(root).images
    x = mat_array(b"X", (32, 32, 3, N), 2, pixels(32, 32, 3, N).tobytes(order="F"))
    y = mat_array(b"y", (N, 1), 9, np.where(LABELS == 0, 10, LABELS).astype(">f8").tobytes())
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + x + y)
    np.testing.assert_array_equal(digits.load(root).images, images)
    np.testing.assert_array_equal(digits.load(root).classes[:N], LABELS)


@pytest.mark.parametrize("shape", [(32, 32, 3, N + 1), (-32, -32, 3, N), (2**31 - 1,) * 4, ()])
def test_mat_that_promises_another_size_is_refused(root, shape):
    x = mat_array(b"X", shape, 2, bytes(32 * 32 * 3 * N))
    only(root, "svhn").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + x)
    with pytest.raises(InputError, match="expected a complete MATLAB 5 file"):
        digits.load(root)


def test_mat_with_cut_compression_is_refused(root):
    path = only(root, "svhn")
    packed = zlib.compress(b"0" * 100)[:-6]
    path.write_bytes(
        path.read_bytes()[:128] + struct.pack("<II", 15, len(packed)) + packed + b"tail"
    )
    with pytest.raises(InputError, match="expected a complete MATLAB 5 file"):
        digits.load(root)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0 1:0", 1),
        ("11 1:0", 1),
        ("1.5 1:0", None),
        ("1 1:0\n1 1:1.1", 2),
        ("1 1:0\n1 1:nan", 2),
        ("1 0:0", 1),
        ("1 257:0", 1),
        ("1 2:0 1:0", 1),
        ("1 1:0 1:0", 1),
        ("1 1:0 2", 1),
        ("1 1 0", 1),
        ("one 1:0", 1),
        ("1 1:x", 1),
        ("1 1:\u00bd", 1),
    ],
)
def test_bad_libsvm_is_refused(root, text, line):
    only(root, "usps").write_bytes(bz2.compress(text.encode()))
    message = f"line {line}: expected a label" if line else "labels must be the digits"
    with pytest.raises(InputError, match=rf"usps\.bz2: {message}"):
        digits.load(root)


@pytest.mark.parametrize("text", [b"1" * 20_000, b"\n" * 200_001])
def test_endless_libsvm_is_refused(root, text):
    only(root, "usps").write_bytes(bz2.compress(text))
    with pytest.raises(InputError, match=r"usps\.bz2: unpacked it is larger than any official"):
        digits.load(root)


@pytest.mark.parametrize("line", ["00000000.png", "00000000.png x", "../a.png 1", "a/b.png 1", "-"])
def test_bad_list_of_pictures_is_refused(root, line):
    path = only(root, "mnistm")
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(InputError, match=r"labels\.txt: line 13: expected NAME\.png and a digit"):
        digits.load(root)


def test_pictures_and_list_must_agree(root):
    path = only(root, "mnistm")
    (path.parent / "mnist_m_train" / "00000003.png").unlink()
    with pytest.raises(InputError, match=r"12 lines, and 11 PNG files in .* 00000003.png in one"):
        digits.load(root)
    path.write_text("00000000.png 1\n" * 2)
    with pytest.raises(InputError, match=r"2 lines, and 11 PNG files"):
        digits.load(root)


def test_a_picture_listed_twice_is_refused(root):
    path = only(root, "mnistm")
    path.write_text(path.read_text() + "00000000.png 0\n")
    with pytest.raises(InputError, match=r"13 lines, and 12 PNG files in '.*'; expected every"):
        digits.load(root)


@pytest.mark.parametrize(
    ("shape", "message"), [((33, 32, 3), "more than 1024 pixels"), ((16, 32, 3), "32 x 16 pixels")]
)
def test_pictures_of_another_size_are_refused(root, shape, message):
    only(root, "mnistm")
    path = root / "mnist_m/mnist_m_test/00000007.png"
    Image.fromarray(pixels(*shape)).save(path)
    with pytest.raises(InputError, match=rf"00000007\.png: {message}"):
        digits.load(root)
    report = digits.check(root)
    assert (report.num_images, len(report.problems)) == (23, 1)


@pytest.mark.parametrize("domain", ["mnist", "optdigits", "svhn", "usps"])
def test_bombs_are_refused(root, domain, monkeypatch):
    monkeypatch.setattr(digit_formats, "MAX_UNPACKED_BYTES", 10_000)
    path = only(root, domain)
    bomb = b"\0" * 1_000_000
    if domain == "mnist":
        path.write_bytes(gzip.compress(bomb))
    elif domain == "usps":
        path.write_bytes(bz2.compress(bomb))
    elif domain == "svhn":
        packed = zlib.compress(bomb)
        path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(packed)) + packed)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", bomb)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"unpacked it is larger than any official file \(10000"):
        digits.load(root)


def test_check_counts_domains_and_classes(root):
    report = digits.check(root)
    assert (report.num_images, report.problems) == (108, ())
    assert report.details["domains"] == dict(
        zip(digits.DOMAIN_NAMES, [24, 12, 24, 24, 24], strict=True)
    )
    two = {"0": 2, "1": 2}
    assert report.details["classes"]["optdigits"] == {**dict.fromkeys("0123456789", 1), **two}


def test_one_more_picture_is_read_as_those_of_the_folder_are(root):
    only(root, "mnistm")
    dataset = digits.load(root, size=(24, 24))
    path = root / "mnist_m/mnist_m_train/00000002.png"
    read = digits.SOURCE.read(path, path.read_bytes(), size=(24, 24), max_per_domain=5)
    np.testing.assert_array_equal(read.pixels, dataset.images[2])
    with pytest.raises(InputError, match="more than 100 pixels"):
        digits.SOURCE.read(path, path.read_bytes(), size=(24, 24), max_pixels=100)


def test_real_data(data_dir):
    dataset = digits.load(data_dir / "digits", max_per_domain=0)
    assert dataset.domain_names == ("mnist", "optdigits")
    np.testing.assert_array_equal(np.bincount(dataset.domains), [12_000, 1437])
    # The first digits of MNIST, as published.
    np.testing.assert_array_equal(dataset.classes[:10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    np.testing.assert_array_equal(dataset.classes[10_000:10_005], [7, 2, 1, 0, 4])
    # Mean of the published MNIST, 0.1307 of the brightest; resizing keeps it.
    mean = (dataset.images[:12_000].mean() + 1) / 2
    np.testing.assert_allclose(mean, 0.1307, atol=0.002)
    assert len(digits.load(data_dir / "digits")) == 2000 + 1437
    report = digits.check(data_dir / "digits")
    assert (report.num_images, report.problems) == (13_437, ())
