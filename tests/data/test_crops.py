import io

import numpy as np
import PIL.Image
import pytest

from dessilbi_jax.data import _crops


def encoded(pixels, form="PNG", mode=None):
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [255 * rows / height, 255 * columns / width, 127 + 120 * np.sin(columns / 15)], -1
    ).astype(np.uint8)


def test_random_boxes_have_the_area_and_ratio_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([_crops.random_box(500, 375, rng) for _ in range(4000)])
    left, upper, right, lower = boxes.T
    assert (boxes >= 0).all()
    assert right.max() == 500
    assert lower.max() == 375
    width, height = right - left, lower - upper
    area, ratio = width * height / (500 * 375), width / height
    assert 0.08 * 0.98 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    small = area < 0.4  # these always fit, so they are as drawn
    assert abs(np.log(ratio[small]).mean()) < 0.02
    assert abs(area[small].mean() - 0.24) < 0.01
    assert abs((left / np.maximum(500 - width, 1))[small].mean() - 0.5) < 0.02


def test_an_image_too_long_for_any_crop_gives_its_middle():
    rng = np.random.default_rng(0)
    assert _crops.random_box(1000, 9, rng) == (494, 0, 506, 9)
    assert _crops.random_box(9, 1000, rng) == (0, 494, 9, 506)
    assert _crops.random_box(1, 1, rng) == (0, 0, 1, 1)


def test_half_of_the_train_images_are_mirrored():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:] = np.arange(40)[None, :, None] * 6
    image = encoded(pixels)
    crops = [_crops.train_pixels(image, 8, np.random.default_rng(i)) for i in range(400)]
    mirrored = np.mean([crop[4, 0, 0] > crop[4, -1, 0] for crop in crops])
    assert 0.42 < mirrored < 0.58


def test_the_evaluation_crop_is_the_resized_centre():
    pixels = smooth(320, 400)
    got = _crops.test_pixels(encoded(pixels), 224)
    whole = PIL.Image.fromarray(pixels).resize((320, 256), PIL.Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[16:240, 48:272]
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert _crops.centre_box(400, 300, 224) == (68.75, 18.75, 331.25, 281.25)


@pytest.mark.parametrize("size", [16, 40, 60, 100])
def test_a_jpeg_decoded_smaller_looks_the_same(size, monkeypatch):
    pixels = smooth(375, 500)
    jpeg, png = encoded(pixels, "JPEG"), encoded(pixels)
    asked = []
    draft = PIL.JpegImagePlugin.JpegImageFile.draft

    def watched(self, mode, to):
        asked.append(to)
        return draft(self, mode, to)

    monkeypatch.setattr(PIL.JpegImagePlugin.JpegImageFile, "draft", watched)
    got, expected = _crops.test_pixels(jpeg, size), _crops.test_pixels(png, size)
    assert np.abs(got.astype(int) - expected).mean() < 1.5
    # the crop of 375 * 224 / 256 = 328 pixels is never decoded smaller than its result
    shrunk = {16: 8, 40: 8, 60: 4, 100: 2}[size]
    assert asked == [(500 // shrunk, 375 // shrunk)]


def test_a_jpeg_is_decoded_whole_where_its_crop_needs_it(monkeypatch):
    monkeypatch.setattr(
        PIL.JpegImagePlugin.JpegImageFile, "draft", lambda *_: pytest.fail("decoded smaller")
    )
    _crops.test_pixels(encoded(smooth(375, 500), "JPEG"), 224)


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1")]
)
@pytest.mark.parametrize("size", [8, 50])
def test_every_kind_of_image_becomes_colour(form, mode, size):
    image = encoded(smooth(60, 70), form, mode)
    for pixels in (
        _crops.test_pixels(image, size),
        _crops.train_pixels(image, size, np.random.default_rng(0)),
    ):
        assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
        assert pixels.std() > 20
