"""A misspelt name gets the one that was meant."""

import json
import logging

import pytest

from lorweb_core import BankError, BasisBank, MixingCoefficients
from lorweb_core.card import EditCard
from lorweb_core.patterns import match_layers
from lorweb_core.released import settings_from_yaml
from lorweb_core.wording import meant, misspelt

from .conftest import LAYERS


@pytest.mark.parametrize(
    ("pattern", "likely"),
    [
        ("transfomer_blocks.{0-4}", "transformer_blocks.{0-4}"),
        ("*.proj_outt", "*.proj_out"),
        ("single_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"),
        ("transformer_blocks.0.att.toq", "transformer_blocks.0.attn.to_q"),
        (" transformer_block.* ", "transformer_blocks.*"),
    ],
)
def test_patterns(pattern, likely):
    with pytest.raises(ValueError, match="matches none of the 11 layers; did you mean") as caught:
        match_layers(pattern, tuple(LAYERS))
    assert f"; did you mean {likely!r}?" in str(caught.value) and match_layers(likely, tuple(LAYERS))


@pytest.mark.parametrize("pattern", ["transformer_blocks.99", "qqqq", "transformer_blocks.{50-60}", "[z-a]"])
def test_nothing_is_offered_that_matches_nothing(pattern):
    with pytest.raises(ValueError, match="matches none") as caught:
        match_layers(pattern, tuple(LAYERS))
    assert "did you mean" not in str(caught.value) and "layers are named like" in str(caught.value)


def test_keys_of_json():
    with pytest.raises(ValueError, match="it has 'layer': did you mean 'layers'"):
        MixingCoefficients.from_document({"softmax": True, "layer": {"a": [1.0]}})
    card = json.loads(EditCard(MixingCoefficients.from_document({"softmax": True, "layers": {"a": [1.0]}})).to_json())
    card["activatoin"] = card.pop("activation")
    with pytest.raises(ValueError, match="it has 'activatoin': did you mean 'activation'"):
        EditCard.from_json(json.dumps(card))


def test_settings_of_a_header(make_bank):
    with pytest.raises(BankError, match="sofmax, which this version does not know; did you mean 'softmax'"):
        BasisBank.load(make_bank(sofmax=False)[0])


def test_settings_of_a_yaml(caplog):
    """As in the released code a misspelt setting has no effect; but there is a word of it."""
    kwargs = {"external_query": True, "query_moed": "ca'-ca", "lora_heads": 1, "new_things": 3}
    document = {"config": {"process": [{"network": {"network_kwargs": kwargs}}]}}
    with caplog.at_level(logging.WARNING):
        assert settings_from_yaml(document)["query_mode"] == "aa'bb'"
    assert [r.message for r in caplog.records] == [
        "network_kwargs says nothing of query_mode; it has 'query_moed': did you mean 'query_mode'?"
    ]
    with pytest.raises(BankError, match=r"no section network_kwargs of .*; it has 'network_kwarg': did you mean"):
        settings_from_yaml({"config": {"process": [{"network": {"network_kwarg": {}}}]}})
    with pytest.raises(BankError, match=r"no section 0 of config\.process\[0\]"):
        settings_from_yaml({"config": {"process": []}})


def test_what_is_far_or_no_word_has_no_neighbour():
    assert meant("abc", ["xyz", 3]) == "" and meant(3, ["3"]) == "" and meant("x" * 999, ["x" * 998]) == ""
    assert misspelt("layers", ["layers", "layer"]) == ""
