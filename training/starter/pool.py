"""The latents that the starter's base is trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lorweb_core.canvas import stack_quadrants

from ..data import EmbeddingCache, Manifest, load_quadrants, square_canvas
from ..encoders import LatentCoder


class LatentPool:
    """Latents of every pair in every quadrant where it can stand, so that any two pairs of a task make a canvas.

    A quadrant is encoded inside a whole canvas, because the autoencoder looks over its edges. The latents lie where the
    autoencoder does.

    Args:
        manifest: pairs whose tasks are named ``<edit>/<draw>``.
        coder: the autoencoder. cache: folder that keeps the latents.
    """

    def __init__(self, manifest: Manifest, coder: LatentCoder, canvas: int, cache: Path, fingerprint: Mapping):
        self.manifest, self.coder, self.geometry = manifest, coder, square_canvas(canvas)
        store = EmbeddingCache(cache, {**fingerprint, "canvas": canvas})
        pairs = [manifest[number] for number in range(len(manifest))]
        keys = [f"{pair.before.key} {pair.after.key}" for pair in pairs]
        store.get_or_build(dict(zip(keys, pairs)).items(), self._encode, batch_size=16, label="encoding pairs")
        rows = store.stack(keys)
        self.reference, self.target = (rows[name].to(coder.vae.device) for name in ("reference", "target"))
        self.tasks = {name: list(numbers) for name, numbers in manifest.tasks.items()}

    def _encode(self, pairs: list) -> dict[str, Tensor]:
        before, after = (
            load_quadrants([getattr(pair, side) for pair in pairs], self.geometry) for side in ("before", "after")
        )
        canvases = stack_quadrants(before, after, before, before), stack_quadrants(before, after, before, after)
        return dict(zip(("reference", "target"), map(self.coder.encode, canvases)))

    def canvases(self, examples: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """(reference, target) latents [B, 16, h, w] of analogies between pairs given by number [B]."""
        reference, target = self.reference[answers].clone(), self.target[answers].clone()
        half = reference.shape[-2] // 2
        reference[:, :, :half] = self.reference[examples][:, :, :half]
        target[:, :, :half] = self.target[examples][:, :, :half]
        return reference, target

    def pictures(self, answers: Sequence[int]) -> Tensor:
        """b' [B, 3, H, W] in 0..1 of pairs given by number."""
        pairs = [self.manifest[number].after for number in answers]
        return load_quadrants(pairs, self.geometry).movedim(-1, 1)

    def images(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        """(reference, target) latents [B, 16, h/2, w/2] of the bottom-right quadrants alone."""
        half = self.reference.shape[-1] // 2
        return tuple(latents[answers][:, :, half:, half:] for latents in (self.reference, self.target))
