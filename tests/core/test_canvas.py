"""One geometry for canvas, latent and crop."""

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core import CanvasGeometry
from lorweb_core.canvas import MULTIPLE, PIXELS_PER_MEGAPIXEL, fit_image, pad_edges, resize, stack_quadrants

SHAPES = [(512, 512), (427, 640), (640, 427), (1080, 1920), (300, 301), (1365, 2048), (97, 400), (3000, 1000), (17, 17)]


def image(height, width, batch=1, seed=0):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("megapixels", [0.25, 1.0, 2.0])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_plan(height, width, megapixels):
    g = CanvasGeometry.plan(height, width, megapixels)
    assert g.frame.height % MULTIPLE == 0 and g.frame.width % MULTIPLE == 0
    assert (g.height, g.width) == (2 * g.frame.height, 2 * g.frame.width)
    # b keeps its aspect ratio to the nearest pixel, and fills its quadrant up to less than one step of 16.
    assert abs(g.frame.content_width - g.frame.content_height * width / height) <= 0.5 + 0.5 * max(1, width / height)
    assert g.frame.height - g.frame.content_height < MULTIPLE and g.frame.width - g.frame.content_width < MULTIPLE
    assert abs(g.height * g.width / (megapixels * PIXELS_PER_MEGAPIXEL) - 1) < 0.35


def test_a_square_megapixel_is_1024():
    g = CanvasGeometry.plan(700, 700)
    assert (g.height, g.width, g.frame.content_height, g.frame.content_width) == (1024, 1024, 512, 512)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_long_side(height, width):
    g = CanvasGeometry.plan(height, width, long_side=1024)
    assert 0.8 * 1024 <= max(g.height, g.width) <= 1024


def test_round_trip_is_exact_at_equal_size():
    for height, width in [(height, width) for height, width in SHAPES if height * width < 300_000]:
        b = image(height, width, batch=2)
        g = CanvasGeometry.plan(height, width, megapixels=0)
        canvas = g.compose(image(60, 90), image(90, 60), b)
        assert canvas.shape == (2, g.height, g.width, 3)
        assert torch.equal(g.crop(canvas), b)
    b = image(512, 512)
    g = CanvasGeometry.plan(512, 512)
    assert torch.equal(g.crop(g.compose(b, b, b)), b)


def test_round_trip_returns_at_bs_own_size():
    b = resize(image(12, 20), 333, 500)
    g = CanvasGeometry.plan(333, 500, megapixels=0.5)
    back = g.crop(g.compose(b, b, b))
    assert back.shape == b.shape
    assert (back - b).abs().mean() < 0.01
    assert g.crop(g.compose(b, b, b), original_size=False).shape[1:3] == (g.frame.content_height, g.frame.content_width)


def test_quadrants_hold_a_a_prime_b_b():
    a, a_prime, b = (torch.full((1, 64, 64, 3), value) for value in (0.1, 0.2, 0.3))
    g = CanvasGeometry.plan(64, 64, megapixels=0)
    canvas = g.compose(a, a_prime, b)
    corners = [canvas[0, y, x, 0].item() for y in (5, 120) for x in (5, 120)]
    assert corners == pytest.approx([0.1, 0.2, 0.3, 0.3])
    target = g.compose(a, a_prime, b, answer=torch.full((1, 64, 64, 3), 0.4))
    assert target[0, 120, 120, 0].item() == pytest.approx(0.4)
    assert torch.equal(g.crop(target), torch.full((1, 64, 64, 3), 0.4))


def test_a_batch_of_b_shares_the_pair():
    b = image(64, 64, batch=3)
    canvas = CanvasGeometry.plan(64, 64, megapixels=0).compose(image(64, 64), image(64, 64, seed=1), b)
    assert torch.equal(canvas[0, :64], canvas[2, :64]) and not torch.equal(canvas[0, 64:], canvas[2, 64:])


def test_fit_crop_takes_the_middle():
    wide = torch.zeros(1, 10, 30, 3)
    wide[:, :, 10:20] = 1.0
    assert torch.equal(fit_image(wide, 10, 10, "crop"), torch.ones(1, 10, 10, 3))


def test_fit_crop_takes_the_middle_of_both_sides():
    """Of a picture wider than the shape the sides go, of a taller one top and bottom; what stays is as it was."""
    grid = torch.arange(12.0)[:, None] * 100 + torch.arange(20.0)
    for (height, width), (rows, columns) in {
        (12, 8): (slice(0, 12), slice(6, 14)),
        (6, 20): (slice(3, 9), slice(0, 20)),
        (12, 15): (slice(0, 12), slice(2, 17)),
    }.items():
        found = fit_image(grid[None, ..., None], height, width, "crop")
        assert torch.equal(found[0, ..., 0], grid[rows, columns])


def test_fit_pad_keeps_everything_and_repeats_edges():
    wide = image(10, 30)
    padded = fit_image(wide, 30, 30, "pad")
    assert torch.equal(padded[:, 10:20], wide)
    assert torch.equal(padded[:, :10], wide[:, :1].expand(-1, 10, -1, -1))


def test_fit_stretch_uses_the_whole():
    gradient = torch.linspace(0, 1, 100)[None, None, :, None].expand(1, 50, 100, 3)
    stretched = fit_image(gradient, 60, 60, "stretch")
    assert stretched[0, 30, 0, 0] < 0.02 and stretched[0, 30, -1, 0] > 0.98
    assert stretched[0, 30].diff(dim=0).min() > 0


def test_unknown_fit():
    with pytest.raises(ValueError, match="'zoom'; expected one of crop, pad, stretch"):
        fit_image(image(4, 4), 8, 8, "zoom")


def test_resize_stays_in_range():
    sharp = (image(9, 9) > 0.5).float()
    big = resize(sharp, 100, 100)
    assert big.min() >= 0 and big.max() <= 1


@pytest.mark.parametrize("size", [(40, 30), (9, 11), (160, 190)])
def test_resize_is_pillows_bicubic(size):
    """Antialiased when smaller, bicubic when larger, and never beyond 0 and 1."""
    picture = image(64, 64)[..., :1]
    pillow = Image.fromarray(picture[0, ..., 0].numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    torch.testing.assert_close(resize(picture, *size)[0, ..., 0], torch.tensor(np.asarray(pillow)).clamp(0, 1))


def test_pad_edges_of_the_same_size_changes_nothing():
    x = image(5, 6)
    assert torch.equal(pad_edges(x, 5, 6), x)


def test_stack_quadrants():
    parts = [torch.full((1, 2, 3, 1), float(i)) for i in range(4)]
    assert stack_quadrants(*parts)[0, ::2, ::3, 0].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10), "at least one pixel"),
        ((10, 10, -1.0), "must not be negative"),
        ((10, 10, 1.0, -5), "must not be negative"),
        ((10, 4000, 1.0, 16), "no size in multiples of 16 pixels fits a canvas"),
        ((10, 10, 1.0, 10**12), "nor above 64 megapixels or 16384 pixels a side"),
        ((10, 10, 1e9), "nor above 64 megapixels"),
        ((10, 10, float("nan")), "found megapixels nan"),
        ((10, 10, 1.0, float("nan")), "long side nan"),
        ((1, 1_000_000), "b is 1000000 x 1 pixels: a canvas of that shape .* crop b"),
    ],
)
def test_impossible_plans(arguments, message):
    with pytest.raises(ValueError, match=message):
        CanvasGeometry.plan(*arguments)


def test_narrow_canvases_warn():
    assert CanvasGeometry.plan(512, 512).warning == "" == CanvasGeometry.plan(1000, 125).warning
    for size in ((1600, 100), (112, 1008)):
        assert "differ by more than 8 to 1" in CanvasGeometry.plan(*size, megapixels=0).warning


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="there is no image b"):
        CanvasGeometry.plan(64, 64).compose(image(64, 64), image(64, 64), image(64, 64)[:0])


def test_a_scaled_canvas_is_refused():
    g = CanvasGeometry.plan(512, 512)
    with pytest.raises(ValueError, match="is 2048 x 2048 pixels, but its geometry says 1024 x 1024"):
        g.crop(torch.zeros(1, 2048, 2048, 3))
