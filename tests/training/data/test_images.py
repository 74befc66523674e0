"""Images to tensors: parts, orientation, modes, and errors that name the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import ImageError, ImageRef, images, load_image
from training.data.images import PARTS, inspect_file, load_images
from training.hashing import content_hash


def ref(path, part=""):
    return ImageRef(path, content_hash(path.read_bytes()), part)


def test_values_and_layout(picture, tmp_path):
    path = picture(tmp_path / "a.png", (6, 4))
    expected = torch.from_numpy(np.asarray(Image.open(path)).copy()) / 255
    loaded = load_image(ref(path))
    assert loaded.shape == (4, 6, 3) and loaded.dtype == torch.float32
    assert torch.equal(loaded, expected)


def test_a_file_with_several_images_is_decoded_once(picture, tmp_path, monkeypatch):
    one, two = picture(tmp_path / "a.png", (6, 4), seed=1), picture(tmp_path / "b.png", (6, 4), seed=2)
    refs = [ref(one, "right"), ref(two), ref(one, "left")]
    expected = [load_image(each) for each in refs]
    read = []
    monkeypatch.setattr(images, "_read", lambda path: read.append(path) or path.read_bytes())
    assert all(torch.equal(*couple) for couple in zip(load_images(refs), expected))
    assert read == [one, two]


def test_parts_tile_the_file(picture, tmp_path):
    path = picture(tmp_path / "a.png", (6, 4))
    whole = load_image(ref(path))
    part = {name: load_image(ref(path, name)) for name in PARTS}
    assert torch.equal(torch.cat((part["left"], part["right"]), 1), whole)
    top = torch.cat((part["top-left"], part["top-right"]), 1)
    bottom = torch.cat((part["bottom-left"], part["bottom-right"]), 1)
    assert torch.equal(torch.cat((top, bottom)), whole)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_orientation_of_a_camera_is_applied(tmp_path, suffix):
    left_dark = np.zeros((16, 32, 3), dtype=np.uint8)
    left_dark[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: the viewer turns it clockwise, so the dark left ends on top
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(left_dark).save(path, exif=exif)
    assert inspect_file(path).size == inspect_file(path, quick=True).size == (16, 32)
    loaded = load_image(ref(path))
    assert loaded.shape == (32, 16, 3)
    assert loaded[:14].max() < 0.1 and loaded[18:].min() > 0.9


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_ordinary_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    assert torch.equal(load_image(ref(path)), torch.ones(3, 5, 3))


def test_sixteen_bit_greys_keep_their_range(tmp_path):
    greys = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(greys).save(tmp_path / "a.png")
    expected = torch.tensor([0, 1, 128, 255]) / 255
    assert torch.equal(load_image(ref(tmp_path / "a.png"))[0, :, 0], expected)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"a\.tiff: .*floating point"):
        inspect_file(tmp_path / "a.tiff")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_a_truncated_file_is_named(suffix, picture, truncate, tmp_path):
    path = picture(tmp_path / f"a.{suffix}", (64, 64))
    assert inspect_file(path).size == (64, 64)
    truncate(path)
    with pytest.raises(ImageError, match=rf"a\.{suffix}: not a readable image"):
        inspect_file(path)
    with pytest.raises(ImageError, match=rf"a\.{suffix}: not a readable image"):
        load_image(ref(path))


def test_a_flipped_byte_inside_a_png_is_noticed(picture, tmp_path):
    path = picture(tmp_path / "a.png", (64, 64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        inspect_file(path)


def test_a_changed_file_is_refused(picture, tmp_path):
    path = picture(tmp_path / "a.png", seed=1)
    image = ref(path)
    picture(path, seed=2)
    with pytest.raises(ImageError, match=r"a\.png: the file has changed since the manifest was made"):
        load_image(image)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read: No such file"):
        load_image(ImageRef(tmp_path / "gone.png", "0"))
