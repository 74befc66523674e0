"""The frame of one picture, and the 2x2 canvas: a | a' over b | b. One geometry serves the reference image, the
latent and the crop of b'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .wording import shown

# The autoencoder shrinks by 8 and FLUX packs 2x2 latents into a token: a frame must be a whole number of tokens.
MULTIPLE = 16
LATENT_SHRINK = 8
PIXELS_PER_MEGAPIXEL = 1024 * 1024
FITS = ("crop", "pad", "stretch")
# A canvas larger than this is a slip of the hand or of a link, which skip the limits of a widget.
LARGEST_SIDE, LARGEST_MEGAPIXELS = 16384, 64
# Sides that differ more than this leave the model strips that nothing can be drawn in.
_LONGEST_SHAPE = 8
# Frame heights this far from the ideal one are tried for a better match of b's aspect ratio.
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
class Frame:
    """One picture in a frame of whole tokens; sizes in pixels.

    A frame is a multiple of 16 in both directions. ``content`` is the part of it that the picture fills: its aspect
    ratio seldom is a ratio of multiples of 16, and rather than distort it, its edge pixels fill the few that remain.

    Attributes:
        source_height, source_width: the picture's own size, to which it is put back.
        content_height, content_width: the picture inside the frame.
        height, width: the frame.
    """

    source_height: int
    source_width: int
    content_height: int
    content_width: int
    height: int
    width: int

    @classmethod
    def plan(cls, height: int, width: int, megapixels: float = 1.0, long_side: int = 0, across: int = 1) -> Frame:
        """Plan the frame of an image b of height x width pixels.

        Args:
            megapixels: size of the model's whole picture in units of 1024 x 1024 pixels; 0 keeps b at its own size.
            long_side: longer side of the whole picture in pixels; 0 leaves the size to ``megapixels``.
            across: frames that the whole picture has each way: 1, or 2 on a canvas.

        Raises:
            ValueError: for an image without pixels, a size that is negative or beyond ``LARGEST_SIDE`` or
                ``LARGEST_MEGAPIXELS``, or a picture too small for one token a frame.
        """
        if height < 1 or width < 1:
            raise ValueError(f"b is {width} x {height} pixels; an image needs at least one pixel each way")
        if not (0 <= megapixels <= LARGEST_MEGAPIXELS and 0 <= long_side <= LARGEST_SIDE):
            raise ValueError(
                f"the {_WHOLE[across]} size must not be negative, nor above"
                f" {LARGEST_MEGAPIXELS} megapixels or {LARGEST_SIDE} pixels a side; found megapixels"
                f" {shown(megapixels)}, long side {shown(long_side)}"
            )
        if not long_side and not megapixels:
            return cls.whole(height, width)
        if long_side:
            ideal_height = long_side / across * min(1.0, height / width)
        else:
            ideal_height = (megapixels * PIXELS_PER_MEGAPIXEL * height / width) ** 0.5 / across
        size = _best_size(height / width, ideal_height, int(long_side // across) if long_side else None)
        if size is None:
            raise ValueError(
                f"no size in multiples of {MULTIPLE} pixels fits a {_WHOLE[across]} with a longer side of {long_side}"
                f" pixels for an image of shape {width} : {height}; raise the size or crop b"
            )
        if max(size) > LARGEST_SIDE // across:
            raise ValueError(
                f"b is {width} x {height} pixels: a {_WHOLE[across]} of that shape would be {across * size[1]} x"
                f" {across * size[0]}; crop b"
            )
        return cls.scaled(height, width, *size)

    @classmethod
    def whole(cls, height: int, width: int) -> Frame:
        """The frame of a picture of height x width pixels at its own size."""
        return cls(height, width, height, width, _ceil(height), _ceil(width))

    @classmethod
    def scaled(cls, height: int, width: int, frame_height: int, frame_width: int) -> Frame:
        """A frame of given size for a picture of height x width pixels: as large as fits, its aspect ratio kept to the
        nearest pixel.
        """
        ratio = min(frame_height / height, frame_width / width)
        content = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        return cls(
            height, width, min(frame_height, content[0]), min(frame_width, content[1]), frame_height, frame_width
        )

    @property
    def warning(self) -> str:
        """What to say of a picture that a model can do little with; empty for others."""
        return _warning_of_narrow("picture", self.height, self.width)

    def fill(self, images: Tensor, fit: str = "crop") -> Tensor:
        """Fit images [B, H, W, C] into the frame: [B, height, width, C]."""
        return pad_edges(fit_image(images, self.content_height, self.content_width, fit), self.height, self.width)

    def crop(self, images: Tensor, original_size: bool = True) -> Tensor:
        """Cut the picture out of framed images [B, height, width, C] and put it back to its own size.

        Args:
            original_size: False keeps the size that it has in the frame.

        Raises:
            ValueError: when the images do not have the frame's size.
        """
        check_made_as_planned("picture", images, self.height, self.width)
        top, left = (self.height - self.content_height) // 2, (self.width - self.content_width) // 2
        content = images[:, top : top + self.content_height, left : left + self.content_width]
        return resize(content, self.source_height, self.source_width) if original_size else content


_WHOLE = {1: "picture", 2: "canvas"}


def check_made_as_planned(name: str, images: Tensor, height: int, width: int) -> None:
    """Refuse images [B, H, W, C] of another size than their geometry's.

    Raises:
        ValueError: with both sizes and what to do.
    """
    if images.shape[1:3] != (height, width):
        raise ValueError(
            f"the {name} is {images.shape[2]} x {images.shape[1]} pixels, but its geometry says {width} x {height};"
            " connect the geometry of the node that made it, and do not scale the image in between"
        )


def _warning_of_narrow(name: str, height: int, width: int) -> str:
    if max(height, width) <= _LONGEST_SHAPE * min(height, width):
        return ""
    return (
        f"The {name} is {width} x {height}: its sides differ by more than {_LONGEST_SHAPE} to 1, and so"
        " narrow a picture leaves the model little to see. Crop b."
    )


@dataclass(frozen=True)
class CanvasGeometry:
    """Where everything lies on one canvas: four frames of one size.

    Attributes:
        frame: of b, and so of every quadrant.
    """

    frame: Frame

    @classmethod
    def plan(cls, height: int, width: int, megapixels: float = 1.0, long_side: int = 0) -> CanvasGeometry:
        """Plan the canvas for an image b of height x width pixels.

        Args:
            megapixels, long_side: size of the whole canvas, see ``Frame.plan``.

        Raises:
            ValueError: as ``Frame.plan``.
        """
        return cls(Frame.plan(height, width, megapixels, long_side, across=2))

    @property
    def height(self) -> int:
        """Height of the canvas in pixels."""
        return 2 * self.frame.height

    @property
    def width(self) -> int:
        """Width of the canvas in pixels."""
        return 2 * self.frame.width

    @property
    def warning(self) -> str:
        """What to say of a canvas that a model can do little with; empty for others."""
        return _warning_of_narrow("canvas", self.height, self.width)

    def quadrant(self, images: Tensor, fit: str = "crop") -> Tensor:
        """Fit images [B, H, W, C] into a quadrant: [B, height / 2, width / 2, C]."""
        return self.frame.fill(images, fit)

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
        check_made_as_planned("canvas", canvas, self.height, self.width)
        return self.frame.crop(canvas[:, self.frame.height :, self.frame.width :], original_size)


def _ceil(pixels: int) -> int:
    return -(-pixels // MULTIPLE) * MULTIPLE


def _best_size(aspect: float, ideal_height: float, longest: int | None) -> tuple[int, int] | None:
    """The frame (height, width) in multiples of 16 near the ideal height that wastes least of itself on padding.

    A frame off the ideal size costs as much as one that leaves the same share of its sides empty. None when none of
    them is within the longest side.
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
    return min(candidates)[1:] if candidates else None
