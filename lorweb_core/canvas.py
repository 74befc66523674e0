"""The 2x2 canvas: a | a' over b | b. One geometry serves the reference image, the latent and the crop of b'."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .wording import shown

# The autoencoder shrinks by 8 and FLUX packs 2x2 latents into a token: a quadrant must be a whole number of tokens.
MULTIPLE = 16
LATENT_SHRINK = 8
PIXELS_PER_MEGAPIXEL = 1024 * 1024
FITS = ("crop", "pad", "stretch")
# A canvas larger than this is a slip of the hand or of a link, which skip the limits of a widget.
LARGEST_SIDE, LARGEST_MEGAPIXELS = 16384, 64
# Sides that differ more than this leave the model strips that nothing can be drawn in.
_LONGEST_SHAPE = 8
# Quadrant heights this far from the ideal one are tried for a better match of b's aspect ratio.
_SEARCH = 0.15


def stack_quadrants(top_left: Tensor, top_right: Tensor, bottom_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Four images [B, H, W, C] as one of [B, 2H, 2W, C]."""
    top = torch.cat((top_left, top_right), dim=2)
    bottom = torch.cat((bottom_left, bottom_right), dim=2)
    return torch.cat((top, bottom), dim=1)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images [B, H, W, C] in 0..1 (bicubic, antialiased); images of the right size come back as they are."""
    if images.shape[1:3] == (height, width):
        return images
    resized = F.interpolate(
        images.movedim(-1, 1).float(), size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 1).movedim(1, -1).to(images.dtype)


def fit_image(images: Tensor, height: int, width: int, fit: str = "crop") -> Tensor:
    """Bring images [B, H, W, C] to a size: centre-crop to its shape, pad with the edge colours, or stretch.

    Raises:
        ValueError: when ``fit`` is none of ``FITS``.
    """
    if fit == "stretch":
        return resize(images, height, width)
    if fit == "crop":
        return resize(_crop_to_shape(images, height, width), height, width)
    if fit == "pad":
        ratio = min(height / images.shape[1], width / images.shape[2])
        inner = (max(1, round(images.shape[1] * ratio)), max(1, round(images.shape[2] * ratio)))
        return pad_edges(resize(images, min(inner[0], height), min(inner[1], width)), height, width)
    raise ValueError(f"fit is {fit!r}; expected one of {', '.join(FITS)}")


def _crop_to_shape(images: Tensor, height: int, width: int) -> Tensor:
    """The largest centred part of the images that has the shape height : width."""
    h, w = images.shape[1:3]
    crop_h = min(h, max(1, round(w * height / width)))
    crop_w = min(w, max(1, round(h * width / height)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    return images[:, top : top + crop_h, left : left + crop_w]


def pad_edges(images: Tensor, height: int, width: int) -> Tensor:
    """Centre images [B, H, W, C] in a larger size, repeating their edge pixels; those of that size come back as they
    are.
    """
    h, w = images.shape[1:3]
    if (h, w) == (height, width):
        return images
    top, left = (height - h) // 2, (width - w) // 2
    rows = (torch.arange(height, device=images.device) - top).clamp(0, h - 1)
    columns = (torch.arange(width, device=images.device) - left).clamp(0, w - 1)
    return images[:, rows][:, :, columns]


@dataclass(frozen=True)
class CanvasGeometry:
    """Sizes of one canvas, all in pixels.

    Every quadrant is a multiple of 16 in both directions. ``content`` is the part of a quadrant that b fills: b's
    aspect ratio seldom is a ratio of multiples of 16, and rather than distort b, its edge pixels fill the few that
    remain.

    Attributes:
        source_height, source_width: b's own size, to which b' is put back.
        content_height, content_width: b inside a quadrant.
        quadrant_height, quadrant_width: a quarter of the canvas.
    """

    source_height: int
    source_width: int
    content_height: int
    content_width: int
    quadrant_height: int
    quadrant_width: int

    @classmethod
    def plan(cls, height: int, width: int, megapixels: float = 1.0, long_side: int = 0) -> CanvasGeometry:
        """Plan the canvas for an image b of height x width pixels.

        Args:
            megapixels: size of the whole canvas in units of 1024 x 1024 pixels; 0 keeps b at its own size.
            long_side: longer side of the whole canvas in pixels; 0 leaves the size to ``megapixels``.

        Raises:
            ValueError: for an image without pixels, a size that is negative or beyond ``LARGEST_SIDE`` or
                ``LARGEST_MEGAPIXELS``, or a canvas too small for one token a quadrant.
        """
        if height < 1 or width < 1:
            raise ValueError(f"b is {width} x {height} pixels; an image needs at least one pixel each way")
        if not (0 <= megapixels <= LARGEST_MEGAPIXELS and 0 <= long_side <= LARGEST_SIDE):
            raise ValueError(
                "the canvas size must not be negative, nor above"
                f" {LARGEST_MEGAPIXELS} megapixels or {LARGEST_SIDE} pixels a side; found megapixels"
                f" {shown(megapixels)}, long side {shown(long_side)}"
            )
        if not long_side and not megapixels:
            return cls(height, width, height, width, _ceil(height), _ceil(width))
        if long_side:
            ideal_height = long_side / 2 * min(1.0, height / width)
        else:
            ideal_height = (megapixels * PIXELS_PER_MEGAPIXEL / 4 * height / width) ** 0.5
        quadrant = _best_quadrant(height / width, ideal_height, int(long_side // 2) if long_side else None)
        if max(quadrant) > LARGEST_SIDE // 2:
            raise ValueError(
                f"b is {width} x {height} pixels: a canvas of that shape would be {2 * quadrant[1]} x"
                f" {2 * quadrant[0]}; crop b"
            )
        return cls(height, width, *_inscribe(height, width, *quadrant), *quadrant)

    @property
    def height(self) -> int:
        """Height of the canvas."""
        return 2 * self.quadrant_height

    @property
    def width(self) -> int:
        """Width of the canvas."""
        return 2 * self.quadrant_width

    @property
    def warning(self) -> str:
        """What to say of a canvas that a model can do little with; empty for others."""
        if max(self.height, self.width) <= _LONGEST_SHAPE * min(self.height, self.width):
            return ""
        return (
            f"The canvas is {self.width} x {self.height}: its sides differ by more than {_LONGEST_SHAPE} to 1, and so"
            " narrow a picture leaves the model little to see. Crop b."
        )

    def quadrant(self, images: Tensor, fit: str = "crop") -> Tensor:
        """Fit images [B, H, W, C] into a quadrant: [B, quadrant_height, quadrant_width, C]."""
        content = fit_image(images, self.content_height, self.content_width, fit)
        return pad_edges(content, self.quadrant_height, self.quadrant_width)

    def compose(self, a: Tensor, a_prime: Tensor, b: Tensor, fit: str = "crop", answer: Tensor | None = None) -> Tensor:
        """The canvas a | a' over b | b, or over b | answer (the training target).

        Args:
            a, a_prime: the example pair, [1, H, W, C] or as many as b; fitted to b's shape by ``fit``.
            b: [B, H, W, C]; scaled, never cropped.

        Returns:
            [B, height, width, C].

        Raises:
            ValueError: for an empty batch.
        """
        batch = b.shape[0]
        if not batch:
            raise ValueError("there is no image b; the batch is empty")
        bottom_left = self.quadrant(b, "stretch")
        bottom_right = bottom_left if answer is None else self.quadrant(answer, "stretch")
        top = (self.quadrant(image, fit).expand(batch, -1, -1, -1) for image in (a, a_prime))
        return stack_quadrants(*top, bottom_left, bottom_right)

    def crop(self, canvas: Tensor, original_size: bool = True) -> Tensor:
        """Cut b' out of a canvas [B, height, width, C] and put it back to b's own size.

        Args:
            original_size: False keeps the size at which b' was made.

        Raises:
            ValueError: when the canvas does not have this geometry's size.
        """
        if canvas.shape[1:3] != (self.height, self.width):
            raise ValueError(
                f"the canvas is {canvas.shape[2]} x {canvas.shape[1]} pixels, but its geometry says {self.width} x"
                f" {self.height}; connect the geometry of the Canvas node that made it, and do not scale the image in"
                " between"
            )
        top = self.quadrant_height + (self.quadrant_height - self.content_height) // 2
        left = self.quadrant_width + (self.quadrant_width - self.content_width) // 2
        content = canvas[:, top : top + self.content_height, left : left + self.content_width]
        return resize(content, self.source_height, self.source_width) if original_size else content


def _ceil(pixels: int) -> int:
    return -(-pixels // MULTIPLE) * MULTIPLE


def _inscribe(height: int, width: int, quadrant_height: int, quadrant_width: int) -> tuple[int, int]:
    """Size of b scaled to fit inside a quadrant, its aspect ratio kept to the nearest pixel."""
    ratio = min(quadrant_height / height, quadrant_width / width)
    return min(quadrant_height, max(1, round(height * ratio))), min(quadrant_width, max(1, round(width * ratio)))


def _best_quadrant(aspect: float, ideal_height: float, longest: int | None) -> tuple[int, int]:
    """The quadrant (height, width) in multiples of 16 near the ideal height that wastes least of itself on padding.

    A quadrant off the ideal size costs as much as one that leaves the same share of its sides empty.
    """
    span = range(int(ideal_height * (1 - _SEARCH)) // MULTIPLE, int(ideal_height * (1 + _SEARCH)) // MULTIPLE + 2)
    candidates = []
    for height in (max(1, step) * MULTIPLE for step in span):
        width = max(MULTIPLE, round(height / aspect / MULTIPLE) * MULTIPLE)
        if longest is not None and max(height, width) > max(longest, MULTIPLE):
            continue
        mismatch = abs(height / width / aspect - 1)
        drift = abs(height / ideal_height - 1)
        candidates.append((mismatch + 0.25 * drift, height, width))
    if not candidates:
        raise ValueError(
            f"no quadrant in multiples of {MULTIPLE} pixels fits a canvas with a longer side of {2 * longest} pixels"
            f" for an image of shape 1 : {1 / aspect:.2f}; raise the size or crop b"
        )
    return min(candidates)[1:]
