"""Save Edit, Load Edit and Find Similar Edits: edits as cards."""

import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.latest import io, ui
from torch import Tensor

from ..lorweb_core import BasisBank, MixingCoefficients
from ..lorweb_core.card import EditCard, load_card
from ..lorweb_core.cardpicture import LARGEST_SHEET, card_picture, contact_sheet, load_picture, save_card
from ..lorweb_core.gallery import Gallery, nearest
from .folders import EDITS_FOLDER, edit_names, edit_path, new_output
from .progress import interruptible, no_bar
from .sockets import CATEGORY, Basis, Coefficients, image_of, schema
from .values import check_finite, check_values, rgb

ALL_FOLDERS = "all"


class SaveEdit(io.ComfyNode):
    """Write an edit card into ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBSaveEdit",
            search_aliases=["edit card", "keep edit", "share edit"],
            display_name="Save Edit (LoRWeB)",
            category=CATEGORY,
            description="Saves the edit as a card: a picture that shows a, a' and the coefficients, and carries the"
            " coefficients themselves, 100 to 300 KB. Load Edit makes an edit of it again.",
            inputs=[
                Coefficients.Input("coefficients", tooltip="The edit to save."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{EDITS_FOLDER}/edit",
                    tooltip="Folder and name below ComfyUI's output folder; a number is added. Keep lorweb_edits/ so"
                    " that Load Edit and Find Similar Edits list the card.",
                ),
                io.String.Input("name", default="", tooltip="What the edit is called; written on the card."),
                io.Image.Input("image_a", optional=True, tooltip="a, to be shown on the card; of a batch the first."),
                io.Image.Input("image_a_prime", optional=True, tooltip="a', to be shown beside a."),
                Basis.Input(
                    "basis",
                    optional=True,
                    tooltip="The bank of the edit: the card then says query mode, encoder, base and layout.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, optional=True, tooltip="The prompt that goes with the edit."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="The strength at which the edit looks as it should; Load Edit gives it back.",
                ),
            ],
            outputs=[io.String.Output(display_name="edit_name", tooltip="The card's name in Load Edit.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        coefficients: MixingCoefficients,
        filename_prefix: str,
        name: str,
        image_a: Tensor | None = None,
        image_a_prime: Tensor | None = None,
        basis: BasisBank | None = None,
        prompt: str = "",
        strength: float = 1.0,
    ) -> io.NodeOutput:
        check_finite(strength=strength)
        if (image_a is None) != (image_a_prime is None):
            raise ValueError("a card shows both image_a and image_a_prime, or neither; connect the other one too")
        card = EditCard(coefficients, name.strip(), prompt=prompt, strength=strength, **_settings(basis, coefficients))
        photos = [] if image_a is None else [_pixels(image_a, "image_a"), _pixels(image_a_prime, "image_a_prime")]
        path = new_output(filename_prefix, EDITS_FOLDER, ".png")
        save_card(card, path, card_picture(card, *photos))
        folder, file = os.path.split(os.path.relpath(path, folder_paths.get_output_directory()))
        shown = ui.SavedImages([ui.SavedResult(file, folder, io.FolderType.output)])
        listed = Path(folder).parts[:1] == (EDITS_FOLDER,)
        return io.NodeOutput(Path(folder, file).as_posix() + ("" if listed else " [output]"), ui=shown)


def _settings(basis: BasisBank | None, coefficients: MixingCoefficients) -> dict[str, str]:
    """What a card says of the bank, which has to be the coefficients' own."""
    if basis is None:
        return {}
    basis.compose(coefficients, no_bar)
    config = basis.config
    words = {"query_mode": config.query_mode, "encoder": config.encoder, "base": config.base_model}
    return {**words, "layout": config.layout}


def _pixels(images: Tensor, name: str) -> np.ndarray:
    """The first image of a batch, [H, W, 3] uint8."""
    return (rgb(images, name)[0].clamp(0, 1) * 255).round().byte().cpu().numpy()


class LoadEdit(io.ComfyNode):
    """Make an edit of a card."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBLoadEdit",
            search_aliases=["edit card", "open edit"],
            display_name="Load Edit (LoRWeB)",
            category=CATEGORY,
            description="Makes an edit of a card: one in models/lorweb_edits or output/lorweb_edits, or one that is"
            " dropped on the node. Apply takes it with the bank that it was made with.",
            inputs=[
                io.Combo.Input(
                    "edit",
                    options=edit_names(),
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="An edit card (.png), or coefficients as JSON as Plot Coefficients gives them. Cards can be"
                    " uploaded.",
                )
            ],
            outputs=[
                Coefficients.Output(display_name="coefficients", tooltip="The edit, for Apply, Blend and the rest."),
                io.String.Output(display_name="prompt", tooltip="The prompt that the card came with."),
                io.Float.Output(display_name="strength", tooltip="The strength that the card came with, for Apply."),
                io.Image.Output(display_name="card", tooltip="The card's picture."),
            ],
            draws=True,
        )

    @classmethod
    def validate_inputs(cls, edit: str) -> bool:
        """Leave a missing file to ``execute``, which says where it belongs; uploads are in no list yet."""
        return True

    @classmethod
    def fingerprint_inputs(cls, edit: str | None) -> str:
        # What comes through a link is not known here.
        return "" if edit is None else _stamp([edit_path(edit)])

    @classmethod
    def execute(cls, edit: str) -> io.NodeOutput:
        path = edit_path(edit)
        card = load_card(path)
        picture = image_of(load_picture(path, card))
        return io.NodeOutput(card.coefficients, card.prompt, card.strength, picture, ui=ui.PreviewImage(picture))


class FindEdits(io.ComfyNode):
    """The cards of a folder that are most like an edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBFindEdits",
            search_aliases=["search edits", "nearest edits"],
            display_name="Find Similar Edits (LoRWeB)",
            category=CATEGORY,
            description="Finds the cards whose coefficients are most like an edit's, shows them with their cosine, and"
            " gives the nearest one as an edit.",
            inputs=[
                Coefficients.Input("coefficients", tooltip="The edit that others are to be like."),
                io.Combo.Input(
                    "folder",
                    options=edit_folders(),
                    default=ALL_FOLDERS,
                    tooltip="Where to look: all cards in models/lorweb_edits and output/lorweb_edits, or in one folder"
                    " there.",
                ),
                io.Int.Input("k", default=8, min=1, max=LARGEST_SHEET, tooltip="How many cards to show."),
            ],
            outputs=[
                io.Image.Output(display_name="contact_sheet", tooltip="The nearest cards, the nearest first."),
                Coefficients.Output(display_name="nearest", tooltip="The nearest edit."),
                io.String.Output(display_name="report", tooltip="Cosines and files, and what was left out and why."),
            ],
            draws=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_) -> str:
        return _stamp(_cards_in(ALL_FOLDERS if folder is None else folder))

    @classmethod
    def execute(cls, coefficients: MixingCoefficients, folder: str, k: int) -> io.NodeOutput:
        check_values(cls, folder=folder, k=k)
        names = _cards_in(folder)
        gallery = Gallery.of(interruptible(names)).like(coefficients)
        matches = nearest(coefficients, gallery.cards, k)
        left_out = [f"left out: {why.replace(str(path), names[str(path)])}" for path, why in gallery.refused.items()]
        if not matches:
            raise ValueError("\n".join([f"there is no other edit of this bank in {folder}", *left_out[:5]]))
        lines = [f"{match.cosine:.3f}  {names[str(match.path)]}: {match.card.describe()}" for match in matches]
        sheet = image_of(contact_sheet(matches, no_bar))
        report = "\n".join(lines + left_out)
        return io.NodeOutput(sheet, matches[0].card.coefficients, report, ui=ui.PreviewImage(sheet))


def edit_folders() -> list[str]:
    """Where Find Similar Edits can look: everywhere, or in one folder below those of the cards."""
    names = folder_paths.get_filename_list(EDITS_FOLDER)
    return [ALL_FOLDERS, *sorted({Path(name).parent.as_posix() for name in names} - {"."})]


def _cards_in(folder: str) -> dict[str, str]:
    """Path of every card of a folder -> its name in Load Edit."""
    names = folder_paths.get_filename_list(EDITS_FOLDER)
    chosen = [name for name in names if folder in (ALL_FOLDERS, Path(name).parent.as_posix())]
    cards = {folder_paths.get_full_path(EDITS_FOLDER, name): f"{EDITS_FOLDER}/{name}" for name in chosen}
    return {path: name for path, name in cards.items() if path is not None}


def _stamp(paths: Iterable[str]) -> str:
    """What changes when one of some files does."""
    files = {path: os.stat(path) for path in paths}
    return "; ".join(f"{path} {status.st_mtime_ns} {status.st_size}" for path, status in files.items())


NODES = [SaveEdit, LoadEdit, FindEdits]
