"""The pack loads wherever it can: a folder that cannot be made, or a name that ComfyUI lacks, takes away no more."""

import logging
import sys
from dataclasses import fields
from inspect import signature

import comfy.latent_formats
import folder_paths
import lorweb_pack.nodes
import pytest
from comfy_api.latest import io
from lorweb_pack.nodes import MODULES, NODES, nodes_of
from lorweb_pack.nodes.analogy import EncodeAnalogy
from lorweb_pack.nodes.folders import basis_names, register_folders


def test_newer_comfyui_is_told_what_it_knows():
    """Encode draws its coefficients: an output node, or, where ComfyUI has such, one of intermediate output."""
    known = {field.name for field in fields(io.Schema)}
    info = EncodeAnalogy.GET_NODE_INFO_V1()
    assert info["output_node"] == ("has_intermediate_output" not in known)
    assert bool(info.get("has_intermediate_output")) == ("has_intermediate_output" in known)
    assert ("edit by example" in (info.get("search_aliases") or [])) == ("search_aliases" in known)
    crop = info["input"]["required"]["encoder_crop"][1]
    assert crop.get("advanced", False) == ("advanced" in signature(io.Combo.Input).parameters)


@pytest.mark.parametrize("broken", ["models is a file", "lorweb is a link to nowhere"])
def test_a_models_folder_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch, caplog, broken):
    models = tmp_path / "models"
    if broken == "models is a file":
        models.touch()
    else:
        models.mkdir()
        (models / "lorweb").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(folder_paths, "models_dir", str(models))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})  # of the real folders, once a test asked for them
    with caplog.at_level(logging.WARNING):
        register_folders()
    assert str(models / "lorweb") in caplog.text
    assert folder_paths.get_folder_paths("lorweb") == [str(models / "lorweb")] and basis_names() == []


def test_a_name_that_comfyui_lacks_takes_its_own_nodes_only(monkeypatch, caplog):
    modules = {name: getattr(lorweb_pack.nodes, name) for name in MODULES}
    for name in modules:  # import them anew, and put them back afterwards
        monkeypatch.delitem(sys.modules, f"lorweb_pack.nodes.{name}")
    monkeypatch.delattr(comfy.latent_formats, "Flux")
    with caplog.at_level(logging.ERROR):
        found = {name: nodes_of(name) for name in MODULES}
    for name, module in modules.items():
        monkeypatch.setattr(lorweb_pack.nodes, name, module)
    assert [name for name, nodes in found.items() if not nodes] == ["starter"]
    assert "starter.py are left out" in caplog.text
    assert sum(map(len, found.values())) == len(NODES) - 2
