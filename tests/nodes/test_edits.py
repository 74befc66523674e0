"""Edit cards through ComfyUI: saved, listed, uploaded, loaded, found, and refused by another bank."""

import copy
import runpy
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from lorweb_pack.lorweb_core import MixingCoefficients
from lorweb_pack.nodes.coefficients import BlendCoefficients
from lorweb_pack.nodes.edits import FindEdits, LoadEdit, edit_folders
from lorweb_pack.nodes.folders import edit_names, register_folders
from PIL import Image

from harness.comfyui import GraphError
from harness.small_models import flux_layers, random_bank
from lorweb_core.card import EditCard, load_card
from lorweb_core.cardpicture import card_picture, save_card

BROWN = "\u8910\u8272"


def node(kind, **inputs):
    return {"class_type": f"LoRWeB{kind}", "inputs": inputs}


def text(source):
    return {"class_type": "PreviewAny", "inputs": {"source": source}}


@pytest.fixture(scope="module")
def saved(comfy, names):
    """The cards of two edits below output/lorweb_edits, by name."""
    from harness.edit_graph import edit_graph

    graph = edit_graph(names["a"], names["a_prime"], names["b"], long_side=256, steps=1)
    edit = graph["apply"]["inputs"]["coefficients"]
    kept = {name: graph[name] for name in needed(graph, edit[0])}
    kept["adjust"] = node("AdjustCoefficients", coefficients=edit, temperature=0.5, top_k=2, block_scales="",
                          overrides="")  # fmt: skip
    photos = {"image_a": ["a", 0], "image_a_prime": ["a_prime", 0], "basis": ["basis", 0]}
    prefix = f"lorweb_edits/cards/{BROWN} \u00e9dit"
    kept["one"] = node("SaveEdit", coefficients=edit, filename_prefix=prefix, name="sepia", prompt="old", strength=0.5,
                       **photos)  # fmt: skip
    kept["two"] = node("SaveEdit", coefficients=["adjust", 0], filename_prefix=prefix, name=f"{BROWN}, sharper")
    comfy.run(kept)
    paths = sorted((comfy.output_folder / "lorweb_edits" / "cards").glob(f"{BROWN} \u00e9dit_*.png"))
    return kept, {load_card(path).name.removeprefix(f"{BROWN}, "): path for path in paths}


def needed(graph, name):
    """A node and all that it hangs on."""
    links = [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return {name}.union(*(needed(graph, link) for link in links))


def test_a_saved_card_is_listed_and_loaded(comfy, saved):
    _, cards = saved
    card = load_card(cards["sepia"])
    assert (card.prompt, card.strength) == ("old", 0.5) and card.query_mode and card.coefficients.fingerprint
    sharper = load_card(cards["sharper"])
    assert (sharper.query_mode, sharper.name) == ("", f"{BROWN}, sharper")
    name = f"lorweb_edits/cards/{cards['sepia'].name}"
    options = comfy.object_info()["LoRWeBLoadEdit"]["input"]["required"]["edit"][1]
    assert name in options["options"] and options["image_upload"] and options["image_folder"] == "input"
    graph = {"edit": node("LoadEdit", edit=name), "plot": node("PlotCoefficients", coefficients=["edit", 0]),
             "prompt": text(["edit", 1]), "strength": text(["edit", 2]), "json": text(["plot", 1])}  # fmt: skip
    outputs = comfy.run(graph)
    assert outputs["prompt"]["text"] == ["old"] and float(outputs["strength"]["text"][0]) == 0.5
    assert outputs["json"]["text"][0] == card.coefficients.to_json()
    shown = comfy.images(outputs, "edit")[0]
    assert np.array_equal(shown, np.asarray(Image.open(cards["sepia"]).convert("RGB")))


def test_an_uploaded_card_is_the_edit(comfy, saved):
    """As the page does when a card is dropped on the node: the bytes go to the input folder as they are."""
    _, cards = saved
    (comfy.base / "input").mkdir(exist_ok=True)
    (comfy.base / "input" / "dropped.png").write_bytes(cards["sharper"].read_bytes())
    options = comfy.object_info()["LoRWeBLoadEdit"]["input"]["required"]["edit"][1]["options"]
    assert "dropped.png" in options and "a.png" not in options
    assert comfy.run({"edit": node("LoadEdit", edit="dropped.png"),
                      "plot": node("PlotCoefficients", coefficients=["edit", 0])})  # fmt: skip


def test_similar_edits_are_found(comfy, saved):
    _, cards = saved
    graph = {"edit": node("LoadEdit", edit=f"lorweb_edits/cards/{cards['sepia'].name}"),
             "find": node("FindEdits", coefficients=["edit", 0], folder="cards", k=3),
             "plot": node("PlotCoefficients", coefficients=["find", 1]),
             "json": text(["plot", 1]), "report": text(["find", 2])}  # fmt: skip
    outputs = comfy.run(graph)
    assert outputs["json"]["text"][0] == load_card(cards["sharper"]).coefficients.to_json()
    report = outputs["report"]["text"][0]
    assert "sharper: 40 layers" in report and "left out: lorweb_edits/" in report and "the very edit" in report
    assert comfy.images(outputs, "find")[0].shape[1] == 328


def test_another_bank_and_bad_names_are_refused(comfy, saved):
    kept, _ = saved
    folder = comfy.base / "models" / "lorweb"
    folder.mkdir(parents=True, exist_ok=True)
    random_bank(folder / "twin.safetensors", flux_layers(256, 2, 2), 8, 4, 32, 2304, seed=9)
    graph = copy.deepcopy(kept)
    graph["basis_2"] = node("LoadBasis", basis_name="twin.safetensors")
    graph["one"]["inputs"]["basis"] = ["basis_2", 0]
    words = r"mixed by .*fingerprint [0-9a-f]{32}.*this bank is twin\.safetensors"
    try:
        with pytest.raises(GraphError, match=words):
            comfy.run({name: graph[name] for name in graph if name != "two"})
    finally:
        (folder / "twin.safetensors").unlink()
    for name in ("absent.png", "../a.png", "lorweb_edits/absent.png"):
        graph = {"edit": node("LoadEdit", edit=name), "plot": node("PlotCoefficients", coefficients=["edit", 0])}
        with pytest.raises(GraphError, match="there is no edit card"):
            comfy.run(graph)
    graph["edit"]["inputs"]["edit"] = "a.png"
    with pytest.raises(GraphError, match="0 texts named lorweb_edit"):
        comfy.run(graph)


def test_a_blend_of_three():
    """What newer ComfyUI's growing inputs hand over; blend leads from the first to the average of the others."""
    edits = [MixingCoefficients(torch.eye(3)[[row]], ("x",)) for row in range(3)]
    more = {"coefficients_3": edits[2], "coefficients_4": None}
    (blended,) = BlendCoefficients.execute(edits[0], edits[1], 0.5, more).args[:1]
    assert torch.equal(blended.values, torch.tensor([[0.5, 0.25, 0.25]]))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of cards that extra_model_paths.yaml names, in a ComfyUI that has no others."""
    for name in ("models_dir", "output_directory", "input_directory"):
        monkeypatch.setattr(folder_paths, name, str(tmp_path / name))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    settings = tmp_path / "extra_model_paths.yaml"
    settings.write_text("mine:\n  base_path: elsewhere\n  lorweb_edits: shelf\n", encoding="utf-8")
    # ComfyUI's own reader, by its path: other packages have modules called utils.
    reader = runpy.run_path(str(Path(folder_paths.__file__).parent / "utils" / "extra_config.py"))
    reader["load_extra_path_config"](str(settings))
    register_folders()
    return tmp_path / "elsewhere" / "shelf"


def test_cards_of_extra_model_paths(shelf):
    edits = [MixingCoefficients(torch.eye(3)[[row]], ("x",)) for row in range(2)]
    (shelf / "films").mkdir(parents=True)
    for edit, name in zip(edits, ("one", f"films/{BROWN}")):
        card = EditCard(edit, name)
        save_card(card, shelf / f"{name}.png", card_picture(card))
    assert edit_names() == [f"lorweb_edits/films/{BROWN}.png", "lorweb_edits/one.png"]
    assert torch.equal(LoadEdit.execute(edit_names()[0]).args[0].values, edits[1].values)
    assert edit_folders() == ["all", "films"]
    _, found, report = FindEdits.execute(edits[0], "films", 1).args
    assert torch.equal(found.values, edits[1].values) and report.startswith(f"0.000  lorweb_edits/films/{BROWN}.png: ")
    with pytest.raises(FileNotFoundError, match=r"put it into .*shelf"):
        LoadEdit.execute("lorweb_edits/absent.png")
