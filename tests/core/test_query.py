"""Every query mode: which images are encoded, how they combine, and that no image is encoded twice."""

import pytest
import torch

from lorweb_core import CanvasGeometry
from lorweb_core.query import QUERY_MODES, build_query, encoder_images

E, TOKENS, WIDTH = 5, 4, 3


class RecordingEncoder:
    """A real, if tiny, encoder: a fixed random linear map of the image's 4 x 4 thumbnail. It records its inputs."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(48, E, generator=generator)
        self.token_weight = torch.randn(17, 48, TOKENS * WIDTH, generator=generator)
        self.seen: list[tuple[torch.Tensor, bool]] = []

    def _thumbnail(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.movedim(-1, 1), 4).flatten(1)

    def pooled(self, images, stretch=False):
        self.seen.append((images, stretch))
        return self._thumbnail(images) @ self.weight

    def tokens(self, images, hidden):
        self.seen.append((images, False))
        states = [(self._thumbnail(images) @ self.token_weight[h]).view(-1, TOKENS, WIDTH) for h in hidden]
        return torch.cat(states, dim=1)


@pytest.fixture
def triplet():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 8, 8, 3, generator=generator) for _ in range(3)]


def canvas(a, a_prime, b, last):
    return torch.cat((torch.cat((a, a_prime), 2), torch.cat((b, last), 2)), 1)


def test_every_mode_of_the_method_is_there():
    pooled = {"cat-aa'b", "ca'-ca", "ca'-ca+cb", "aa'bb'", "caa'bb'", "caa'b", "caa'", "caa'-middle"}
    assert set(QUERY_MODES) == pooled | {"paa'b", "paa'b3", "cat-paa'b", "cat-paa'b3"}


def test_pooled_modes(triplet):
    a, a_prime, b = triplet
    encoder = RecordingEncoder()
    clip = encoder.pooled
    expected = {
        "cat-aa'b": torch.cat((clip(a), clip(a_prime), clip(b)), -1),
        "ca'-ca": clip(a_prime) - clip(a),
        "ca'-ca+cb": clip(a_prime) - clip(a) + clip(b),
        "aa'bb'": clip(canvas(a, a_prime, b, b)),
        "caa'bb'": clip(canvas(a, a_prime, b, b)),
        "caa'b": clip(canvas(a, a_prime, b, torch.zeros_like(b))),
        "caa'": clip(torch.cat((a, a_prime), 2)),
        "caa'-middle": clip(torch.cat((a, a_prime), 2)),
    }
    for mode, z in expected.items():
        assert torch.equal(build_query(mode, *triplet, RecordingEncoder()), z), mode
        assert z.shape[-1] == QUERY_MODES[mode].parts * E


def test_token_modes(triplet):
    a, a_prime, b = triplet
    tokens = RecordingEncoder().tokens
    dark = canvas(a, a_prime, b, torch.zeros_like(b))
    three = (-16, -8, -1)
    expected = {
        "paa'b": tokens(dark, (-1,)).flatten(1),
        "paa'b3": tokens(dark, three).flatten(1),
        "cat-paa'b": torch.cat([tokens(x, (-1,)).flatten(1) for x in triplet], -1),
        "cat-paa'b3": torch.cat([tokens(x, three).flatten(1) for x in triplet], -1),
    }
    for mode, z in expected.items():
        assert torch.equal(build_query(mode, *triplet, RecordingEncoder()), z), mode
    assert expected["cat-paa'b3"].shape == (1, 3 * 3 * TOKENS * WIDTH)


def test_only_the_top_half_is_stretched(triplet):
    for mode in QUERY_MODES:
        encoder = RecordingEncoder()
        build_query(mode, *triplet, encoder)
        assert all(stretch == (mode == "caa'") for _, stretch in encoder.seen), mode


@pytest.mark.parametrize("mode", list(QUERY_MODES))
def test_batches_combine_every_pair_with_every_b(mode):
    pairs, targets = torch.rand(2, 2, 8, 8, 3), torch.rand(3, 8, 8, 3)
    z = build_query(mode, pairs[0], pairs[1], targets, RecordingEncoder())
    singles = [
        build_query(mode, pairs[0][p : p + 1], pairs[1][p : p + 1], targets[t : t + 1], RecordingEncoder())
        for p in range(2)
        for t in range(3)
    ]
    torch.testing.assert_close(z, torch.cat(singles))


def test_images_are_encoded_once_in_a_batch():
    encoder = RecordingEncoder()
    build_query("cat-aa'b", torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3), torch.rand(5, 8, 8, 3), encoder)
    assert sum(len(images) for images, _ in encoder.seen) == 2 + 2 + 5
    encoder = RecordingEncoder()
    build_query("ca'-ca", torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3), torch.rand(5, 8, 8, 3), encoder)
    assert sum(len(images) for images, _ in encoder.seen) == 2 + 2
    encoder = RecordingEncoder()
    build_query("caa'", torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3), torch.rand(5, 8, 8, 3), encoder)
    assert sum(len(images) for images, _ in encoder.seen) == 2


@pytest.mark.parametrize("size", [(200, 200), (150, 333), (512, 512), (1, 7)])
def test_pictures_of_one_size_reach_the_encoder_as_they_are(size):
    pictures = [torch.rand(1, *size, 3) for _ in range(3)]
    assert all(seen is picture for seen, picture in zip(encoder_images(*pictures), pictures))


@pytest.mark.parametrize(
    "sizes",
    [((200, 200), (200, 200), (300, 200)), ((900, 900),) * 3, ((600, 600),) * 3, ((64, 80), (64, 64), (64, 64))],
)
def test_others_become_quadrants_of_a_canvas_that_enlarges_nothing(sizes):
    a, a_prime, b = (torch.rand(1, *size, 3) for size in sizes)
    seen = encoder_images(a, a_prime, b, "pad")
    geometry = CanvasGeometry.plan(*sizes[2], min(1.0, 4 * sizes[2][0] * sizes[2][1] / 2**20))
    expected = geometry.quadrant(a, "pad"), geometry.quadrant(a_prime, "pad"), geometry.quadrant(b, "stretch")
    assert all(torch.equal(x, y) for x, y in zip(seen, expected))


def test_pictures_without_pixels_are_refused():
    with pytest.raises(ValueError, match="at least one pixel"):
        encoder_images(*[torch.zeros(1, 0, 4, 3)] * 3)


def test_refusals(triplet):
    a, a_prime, b = triplet
    with pytest.raises(ValueError, match="1 example pairs and 0 images b"):
        build_query("cat-aa'b", a, a_prime, b[:0], RecordingEncoder())
    with pytest.raises(ValueError, match="query mode 'x' is unknown; known: cat-aa'b"):
        build_query("x", *triplet, RecordingEncoder())
    with pytest.raises(ValueError, match="equally many"):
        build_query("cat-aa'b", a.repeat(2, 1, 1, 1), a_prime, b, RecordingEncoder())
    with pytest.raises(ValueError, match="of one size"):
        build_query("cat-aa'b", a, a_prime, torch.rand(1, 8, 9, 3), RecordingEncoder())
