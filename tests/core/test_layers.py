"""Names of layers, per family of models."""

import pytest

from lorweb_core.layers import FLUX_1, FLUX_2, QWEN_IMAGE, family_of, fused_modules, places

DOUBLE_2 = "transformer_blocks.3."
SINGLE_2 = "single_transformer_blocks.7."


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        (["transformer_blocks.0.ff.net.0.proj", "single_transformer_blocks.1.proj_mlp"], FLUX_1),
        ([DOUBLE_2 + "ff.linear_in", SINGLE_2 + "attn.to_qkv_mlp_proj", DOUBLE_2 + "attn.to_q"], FLUX_2),
        (["transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.0.attn.to_q"], QWEN_IMAGE),
    ],
)
def test_layers_tell_their_family(layers, family):
    assert family_of(layers) is family


def test_layers_of_two_families_are_refused():
    with pytest.raises(
        ValueError, match=r"transformer_blocks\.0\.img_mod\.1: it is no linear layer of FLUX\.2's blocks"
    ):
        family_of([DOUBLE_2 + "ff.linear_in", SINGLE_2 + "attn.to_out", "transformer_blocks.0.img_mod.1"])


def test_places_of_flux_2():
    widths = {"attn.to_q": 6, "attn.to_k": 6, "attn.to_v": 6, "attn.to_out.0": 6, "ff.linear_in": 36}
    stacked = {f"attn.add_{letter}_proj": 6 for letter in "qkv"} | {"ff_context.linear_out": 6}
    layers = {DOUBLE_2 + name: width for name, width in (widths | stacked).items()}
    expected = {
        "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 6), "attn.to_v": ("img_attn.qkv", 12),
        "attn.add_q_proj": ("txt_attn.qkv", 0), "attn.add_k_proj": ("txt_attn.qkv", 6),
        "attn.add_v_proj": ("txt_attn.qkv", 12), "attn.to_out.0": ("img_attn.proj", None),
        "ff.linear_in": ("img_mlp.0", None), "ff_context.linear_out": ("txt_mlp.2", None),
    }  # fmt: skip
    expected = {DOUBLE_2 + name: (f"double_blocks.3.{module}", start) for name, (module, start) in expected.items()}
    expected[SINGLE_2 + "attn.to_qkv_mlp_proj"] = ("single_blocks.7.linear1", None)
    expected[SINGLE_2 + "attn.to_out"] = ("single_blocks.7.linear2", None)
    single = {SINGLE_2 + "attn.to_qkv_mlp_proj": 54, SINGLE_2 + "attn.to_out": 6}
    assert places(layers | single) == expected


def test_a_place_behind_a_layer_that_is_not_there_is_unknown():
    assert places({DOUBLE_2 + "attn.to_k": 6, DOUBLE_2 + "attn.norm_q": 6, "x_embedder": 6}) == {}


def test_qwen_images_modules_stand_alone():
    layer = "transformer_blocks.5.txt_mlp.net.2"
    assert fused_modules((layer,)) == {layer: (layer,)} and places({layer: 4}) == {layer: (layer, None)}
