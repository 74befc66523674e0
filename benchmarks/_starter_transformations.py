"""Edits that others wrote: transformations of albumentations with fixed parameters."""

import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from training.pictures import photographs


class Pixels(NamedTuple):
    """A length as a share of the side; ``odd`` for the width of a filter."""

    share: float
    odd: bool = False

    def at(self, side: int) -> int:
        """The length in pixels."""
        return 2 * max(1, round(self.share * side / 2)) + 1 if self.odd else max(1, round(self.share * side))


class Transformation(NamedTuple):
    """A class of the library and its parameters.

    Attributes:
        like: the edit of the generator that comes nearest, "" where none does.
    """

    kind: str
    parameters: dict[str, Any]
    like: str = ""


_SEED = 7  # of what a transformation draws at random: rain falls where it fell in the example
_REPLICATE, _REFLECT = 1, 4  # OpenCV's names of borders
_GRID = {"ratio": 0.6, "holes_number_xy": (4, 4), "random_offset": False}
_SQUARES = {"num_holes_range": (6, 6), "hole_height_range": (0.25, 0.25), "hole_width_range": (0.25, 0.25)}
_SMALL_SQUARES = {"num_holes_range": (30, 30), "hole_height_range": (0.08, 0.08), "hole_width_range": (0.08, 0.08)}
_REFERENCE = "coffee"  # the photograph whose colours are taken on
_STRONG = {"brightness_range": (0.6, 0.6), "contrast_range": (0.6, 0.6)}
_T = Transformation

# A picture and its edited one are less than 26 dB alike on average.
TRANSFORMATIONS: dict[str, Transformation] = {
    "transpose": _T("Transpose", {}),
    "reflected_margin": _T("CropAndPad", {"percent": 0.5, "border_mode": _REFLECT, "sample_independently": False}),
    "smeared_margin": _T("CropAndPad", {"percent": 0.4, "border_mode": _REPLICATE, "sample_independently": False}),
    "elastic_grid": _T("GridElasticDeform", {"num_grid_xy": (4, 4), "magnitude": Pixels(0.12)}),
    "bent_grid": _T("GridDistortion", {"num_steps": 4, "distort_limit": (0.6, 0.6)}),
    "thin_plate": _T("ThinPlateSpline", {"scale_range": (0.35, 0.35)}),
    "thin_plate_fine": _T("ThinPlateSpline", {"scale_range": (0.2, 0.2), "num_control_points": 5}),
    "shuffled_grid": _T("RandomGridShuffle", {"grid": (4, 4)}),
    "shuffled_tiles": _T("RandomGridShuffle", {"grid": (8, 8)}),
    "shuffled_quarters": _T("RandomGridShuffle", {"grid": (2, 2)}),
    "holes": _T("GridDropout", _GRID),
    "white_holes": _T("GridDropout", _GRID | {"ratio": 0.4, "holes_number_xy": (8, 8), "fill": 255}),
    "noisy_grid": _T("GridDropout", _GRID | {"fill": "random"}),
    "inpainted_grid": _T("GridDropout", _GRID | {"fill": "inpaint_ns"}),
    "coarse_holes": _T("CoarseDropout", _SQUARES),
    "coloured_holes": _T("CoarseDropout", _SQUARES | {"fill": "random_uniform"}),
    "noisy_holes": _T("CoarseDropout", _SQUARES | {"fill": "random"}),
    "inpainted_holes": _T("CoarseDropout", _SQUARES | {"fill": "inpaint_telea"}),
    "confetti": _T("CoarseDropout", _SMALL_SQUARES | {"fill": "random_uniform"}),
    "noisy_hole": _T("Erasing", {"scale": (0.25, 0.25), "ratio": (1, 1), "fill": "random"}),
    "masked_columns": _T("XYMasking", {"num_masks_x": 3, "mask_x_length": Pixels(0.15), "fill": 128}),
    "masked_rows": _T("XYMasking", {"num_masks_y": 3, "mask_y_length": Pixels(0.15), "fill": 128}),
    "masked_cross": _T(
        "XYMasking",
        {"num_masks_x": 1, "num_masks_y": 1, "mask_x_length": Pixels(0.2), "mask_y_length": Pixels(0.2), "fill": 255},
    ),
    "masked_bar": _T("TimeMasking", {"time_mask_param": Pixels(0.8)}),
    "pixels_off": _T("PixelDropout", {"dropout_prob": 0.3, "per_channel": True}),
    "pixels_white": _T("PixelDropout", {"dropout_prob": 0.3, "drop_value": 255}),
    "multiplied_noise": _T("MultiplicativeNoise", {"multiplier": (0.3, 1.7), "per_channel": True, "elementwise": True}),
    "stained": _T("HEStain", {"method": "preset", "preset": "h_heavy", "intensity_scale_range": (1.3, 1.3)}),
    "stained_pink": _T("HEStain", {"method": "preset", "preset": "e_heavy", "intensity_scale_range": (1.3, 1.3)}),
    "histogram_of_another": _T("HistogramMatching", {"blend_ratio": (1.0, 1.0)}),
    "spectrum_of_another": _T("FDA", {"beta_limit": (0.3, 0.3)}),
    "colours_of_another": _T("PixelDistributionAdaptation", {"blend_ratio": (1.0, 1.0), "transform_type": "pca"}),
    "plasma_contrast": _T("PlasmaBrightnessContrast", {**_STRONG, "roughness": 1.0}),
    "plasma_shadow": _T("PlasmaShadow", {"shadow_intensity_range": (0.9, 0.9), "roughness": 1.0}),
    "ringing": _T("RingingOvershoot", {"blur_limit": Pixels(0.2, odd=True), "cutoff": (0.8, 0.8)}),
    "flat_patches": _T("Superpixels", {"p_replace": (0.5, 0.5), "n_segments": (60, 60)}),
    "shadow": _T("RandomShadow", {"num_shadows_limit": (2, 2), "shadow_intensity_range": (0.9, 0.9)}),
    "mud": _T("Spatter", {"mode": "mud"}),
    "blue_mud": _T("Spatter", {"mode": "mud", "color": (30, 60, 220), "cutout_threshold": (0.5, 0.5)}),
    "tone_curve": _T("RandomToneCurve", {"scale": 0.9}),
    "tone_curves": _T("RandomToneCurve", {"scale": 0.9, "per_channel": True}, "cross_process"),
    "lit_from_side": _T("Illumination", {"mode": "linear", "intensity_range": (0.2, 0.2)}, "tint_slope"),
    "greener": _T(
        "RGBShift", {"r_shift_limit": (0, 0), "g_shift_limit": (70, 70), "b_shift_limit": (0, 0)}, "tint_green"
    ),
    "lost_channel": _T("ChannelDropout", {}, "drop_red"),
    "turned_channels": _T("ChannelShuffle", {}, "cycle_channels"),
    "equalised": _T("Equalize", {"by_channels": False}, "equalise"),
    "local_contrast": _T("CLAHE", {"clip_limit": (12, 12), "tile_grid_size": (4, 4)}, "local_contrast"),
    "rotate": _T("Rotate", {"limit": (25, 25)}, "tilt_right"),
    "rotate_fitted": _T("SafeRotate", {"limit": (-40, -40)}, "tilt_left"),
    "perspective": _T("Perspective", {"scale": (0.2, 0.2)}, "recede_left"),
    "squeeze": _T("Affine", {"scale": {"x": (0.5, 0.5), "y": (1.0, 1.0)}}, "narrow"),
    "zoom_corner": _T(
        "Affine", {"scale": (2.0, 2.0), "translate_percent": {"x": (0.5, 0.5), "y": (0.5, 0.5)}}, "crop_corner"
    ),
    "barrel": _T("OpticalDistortion", {"distort_limit": (0.9, 0.9)}, "barrel"),
    "pincushion": _T("OpticalDistortion", {"distort_limit": (-0.9, -0.9)}, "pincushion"),
    "gaussian_noise": _T("GaussNoise", {"std_range": (0.25, 0.25)}, "film_grain"),
    "shot_noise": _T("ShotNoise", {"scale_range": (0.6, 0.6)}, "colour_noise"),
    "salt_and_pepper": _T("SaltAndPepper", {"amount": (0.2, 0.2)}, "specks"),
    "glass": _T("GlassBlur", {"max_delta": Pixels(0.08), "iterations": 2}, "frosted_glass"),
    "median": _T("MedianBlur", {"blur_limit": Pixels(0.2, odd=True)}, "smooth"),
    "zoom_blur": _T("ZoomBlur", {"max_factor": (1.6, 1.6), "step_factor": (0.02, 0.02)}, "zoom_blur"),
    "jpeg": _T("ImageCompression", {"quality_range": (3, 3)}, "compressed"),
    "fog": _T("RandomFog", {"fog_coef_range": (0.9, 0.9), "alpha_coef": 0.3}, "fog"),
    "rain": _T("RandomRain", {"slant_range": (-10, -10), "drop_length": Pixels(0.2), "blur_value": 1}, "rain"),
    "snow": _T("RandomSnow", {"snow_point_range": (0.5, 0.5), "brightness_coeff": 3}, "snow"),
    "splashes": _T("Spatter", {"mode": "rain"}, "ink_spatter"),
}


def transform(name: str, image: np.ndarray) -> np.ndarray:
    """A square picture, uint8 [side, side, 3], after a transformation; the same one falls alike on every picture.

    Raises:
        ValueError: when albumentations is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations
    except ImportError as error:
        raise ValueError("the outside set needs albumentations; pip install albumentations") from error
    kind, parameters, _ = TRANSFORMATIONS[name]
    sized = {key: value.at(len(image)) if isinstance(value, Pixels) else value for key, value in parameters.items()}
    edit = getattr(albumentations, kind)(**sized, p=1.0)
    references = {key: [_reference(len(image))] for key in edit.targets_as_params}
    return albumentations.Compose([edit], seed=_SEED)(image=image, **references)["image"]


def _reference(side: int) -> np.ndarray:
    """The picture that some transformations take something of."""
    picture = Image.fromarray(photographs.load(_REFERENCE))
    start = (picture.width - picture.height) // 2
    return np.asarray(
        picture.resize((side, side), Image.Resampling.BICUBIC, (start, 0, start + picture.height, picture.height))
    )
