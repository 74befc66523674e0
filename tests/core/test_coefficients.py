"""Operations on mixing coefficients."""

import json
import math

import pytest
import torch

from lorweb_core import BasisBank, MixingCoefficients
from lorweb_core.patterns import match_layers, parse_block_scales, parse_overrides
from lorweb_core.plot import THUMBNAIL, heatmap, thumbnail

from .conftest import LAYERS

NAMES = tuple(LAYERS)


def shares(seed=0, batch=()):
    logits = 2 * torch.randn(*batch, len(NAMES), 6, generator=torch.Generator().manual_seed(seed))
    return MixingCoefficients(logits.softmax(-1), NAMES)


def signed(seed=0):
    logits = torch.randn(len(NAMES), 6, generator=torch.Generator().manual_seed(seed))
    return MixingCoefficients(logits.tanh(), NAMES, softmax=False)


def test_blend_interpolates():
    first, second = shares(1), shares(2)
    quarter = MixingCoefficients.blend((first, second), (0.75, 0.25))
    torch.testing.assert_close(quarter.values, 0.75 * first.values + 0.25 * second.values)
    torch.testing.assert_close(quarter.values.sum(-1), torch.ones(len(NAMES)))
    assert torch.equal(MixingCoefficients.blend((first, second), (1, 0)).values, first.values)


def test_blend_of_many_averages_by_default():
    parts = [shares(i) for i in range(4)]
    expected = torch.stack([part.values for part in parts]).mean(0)
    torch.testing.assert_close(MixingCoefficients.blend(parts).values, expected)


def test_mean_averages_a_batch():
    batch = shares(batch=(3,))
    torch.testing.assert_close(batch.mean().values, batch.values.mean(0))
    single = shares()
    assert single.mean() is single


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ((), None, "nothing to blend"),
        ((shares(), shares()), (1.0,), "2 coefficients need as many weights; found 1"),
        ((shares(), shares()), (math.nan, 1.0), "blend: nan is not a finite number"),
        ((shares(), shares()), (1e39, 1.0), "blend: 1e\\+39 is not a finite number"),
        ((shares(), signed()), None, r"6 basis elements \(softmax\),.* and .* 6 basis elements \(tanh\),"),
        ((shares(), MixingCoefficients(torch.ones(1, 6), NAMES[:1])), None, "11 layers of 6 .* and 1 layers of 6"),
    ],
)
def test_blend_refuses(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        MixingCoefficients.blend(parts, weights)


def test_temperature_divides_the_logits():
    logits = torch.randn(len(NAMES), 6)
    c = MixingCoefficients(logits.softmax(-1), NAMES)
    torch.testing.assert_close(c.temperature(0.3).values, (logits / 0.3).softmax(-1))
    t = MixingCoefficients(logits.tanh(), NAMES, softmax=False)
    torch.testing.assert_close(t.temperature(2.0).values, (logits / 2).tanh())


def test_temperature_keeps_totals_and_signs():
    c = MixingCoefficients.blend((shares(1), shares(2)), (1.6, -0.6)).scale_blocks([("transformer_blocks", 0.5)])
    cold = c.temperature(0.5)
    torch.testing.assert_close(cold.values.abs().sum(-1), c.values.abs().sum(-1))
    assert torch.equal(cold.values.sign(), c.values.sign())
    assert (cold.entropy() < c.entropy()).all()


def test_temperature_of_tanh_coefficients_beyond_one():
    """Extrapolated coefficients change as little as the temperature does."""
    c = MixingCoefficients.blend((signed(1), signed(2)), (2.5, -1.5))
    assert c.values.abs().max() > 1.5
    torch.testing.assert_close(c.temperature(0.9999).values, c.values, atol=2e-3, rtol=0)
    flat = c.temperature(3.0)
    assert torch.equal(flat.values.sign(), c.values.sign()) and (flat.values.abs() <= c.values.abs() + 1e-5).all()


@pytest.mark.parametrize("c", [shares(), signed()])
def test_temperature_limits(c):
    assert c.temperature(1.0) is c
    coldest = c.temperature(1e-3)
    assert torch.isfinite(coldest.values).all()
    for t in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"):
            c.temperature(t)


def test_zero_layers_survive_everything():
    c = shares().scale_blocks([("transformer_blocks", 0.0)])
    for changed in (c.temperature(0.5), c.top_k(2)):
        assert torch.isfinite(changed.values).all() and (changed.for_layer(NAMES[0]) == 0).all()
    assert c.entropy()[0] == 0


def test_top_k():
    c = shares()
    top = c.top_k(2)
    assert ((top.values != 0).sum(-1) == 2).all()
    torch.testing.assert_close(top.values.sum(-1), torch.ones(len(NAMES)))
    assert torch.equal(top.values.argmax(-1), c.values.argmax(-1))
    weak = c.scale_blocks([("*", 1e-6)])
    torch.testing.assert_close(weak.top_k(2).values, 1e-6 * top.values, atol=0, rtol=1e-5)
    strong = signed().top_k(2)
    kept = strong.values != 0
    assert torch.equal(strong.values[kept], signed().values[kept])
    opposed = MixingCoefficients(torch.tensor([[-0.9, 0.5, 0.1]]), ("x",), softmax=False)
    assert torch.equal(opposed.top_k(1).values, torch.tensor([[-0.9, 0.0, 0.0]])), "the strongest, of either sign"
    with pytest.raises(ValueError, match="top-k is 7; this bank has 6"):
        c.top_k(7)


def test_scale_blocks():
    c = shares()
    scaled = c.scale_blocks([("transformer_blocks.*", 0.5), ("transformer_blocks.0.attn.to_k", 0.0)])
    torch.testing.assert_close(scaled.for_layer("transformer_blocks.2.norm1.linear").sum(), torch.tensor(0.5))
    assert scaled.for_layer("transformer_blocks.0.attn.to_k").abs().sum() == 0
    name = "single_transformer_blocks.0.proj_out"
    assert torch.equal(scaled.for_layer(name), c.for_layer(name))
    for factor in (math.inf, math.nan, 1e39, 10**400):
        with pytest.raises(ValueError, match=r"transformer_blocks: .* is not a finite number"):
            c.scale_blocks([("transformer_blocks", factor)])
        with pytest.raises(ValueError, match="is not a finite number"):
            c.override([("transformer_blocks", 0, factor)])
    with pytest.raises(ValueError, match="would hold NaN or infinite values"):
        c.scale_blocks([("transformer_blocks", 1e38), ("transformer_blocks", 1e38)])


def test_override():
    c = shares().override([("*.attn.to_q", 3, 0.9), ("transformer_blocks.0.attn.to_q", 0, -1.0)])
    assert c.for_layer("transformer_blocks.0.attn.to_q")[3] == torch.tensor(0.9)
    assert c.for_layer("transformer_blocks.0.attn.to_q")[0] == -1
    assert c.for_layer("single_transformer_blocks.0.attn.to_q")[3] == torch.tensor(0.9)
    assert torch.equal(
        c.for_layer("transformer_blocks.0.attn.to_k"), shares().for_layer("transformer_blocks.0.attn.to_k")
    )
    with pytest.raises(ValueError, match="numbered 0 to 5"):
        c.override([("*", 6, 1.0)])


def test_operations_leave_the_original():
    c = shares()
    before = c.values.clone()
    c.temperature(0.5), c.top_k(1), c.scale_blocks([("*", 0.0)]), c.override([("*", 0, 9.0)])
    assert torch.equal(c.values, before)


def test_entropy_has_a_gradient_where_the_softmax_rounds_shares_to_zero():
    logits = torch.tensor([[200.0, 0.0, -1.0], [1.0, 1.0, 0.0]], requires_grad=True)
    MixingCoefficients(logits.softmax(-1), ("x", "y"), softmax=True).entropy().sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0].abs().max() == 0 and logits.grad[1].abs().min() > 0


def test_entropy_and_effective_number():
    even = MixingCoefficients(torch.full((1, 8), 1 / 8), ("x",))
    one = MixingCoefficients(torch.eye(8)[:1], ("x",))
    torch.testing.assert_close(even.effective_number(), torch.tensor([8.0]))
    torch.testing.assert_close(one.effective_number(), torch.tensor([1.0]))
    torch.testing.assert_close(even.entropy(), torch.tensor([math.log(8)]))
    assert shares(batch=(3,)).entropy().shape == (3, len(NAMES))


@pytest.mark.parametrize("c", [shares(), signed()])
def test_json_round_trip(c):
    again = MixingCoefficients.from_json(c.to_json())
    assert torch.equal(again.values, c.values)
    assert (again.layers, again.softmax) == (c.layers, c.softmax)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: "{", "not JSON"),
        (lambda d: json.dumps([1]), "does not hold coefficients"),
        (lambda d: json.dumps({**d, "format": "other"}), "does not hold coefficients"),
        (lambda d: json.dumps({**d, "layers": {}}), "at least one layer"),
        (lambda d: json.dumps({**d, "softmax": 1}), "true or false"),
        (lambda d: json.dumps({**d, "layers": {"a": [1.0, 2.0], "b": [1.0]}}), "expected a list of 2 .* for layer b"),
        (lambda d: json.dumps({**d, "layers": {"a": ["x"]}}), "layer a"),
        (lambda d: json.dumps({**d, "layers": {"a": 3}}), "layer a"),
        (lambda d: json.dumps({**d, "layers": {"a": [True]}}), "layer a"),
        (lambda d: json.dumps({**d, "layers": {"a": [10**400]}}), "layer a"),
        (lambda d: json.dumps({**d, "layers": {"a": [1e39]}}), "NaN or infinite"),
        (lambda d: json.dumps({**d, "version": 2}), "version 2, and this pack reads 1"),
        (lambda d: "[" * 100_000, "not JSON"),
        (lambda d: f'{{"format": {"9" * 4301}}}', "not JSON"),
        (lambda d: None, "not JSON"),
        (lambda d: 7, "not JSON"),
    ],
)
def test_bad_json(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        MixingCoefficients.from_json(change(json.loads(shares().to_json())))
    assert type(caught.value) is ValueError and len(str(caught.value)) < 1000


def test_json_composes_with_its_bank(make_bank):
    bank = BasisBank.load(make_bank()[0])
    c = bank.mix(torch.randn(36))
    again = MixingCoefficients.from_json(c.to_json())
    assert torch.equal(bank.delta(NAMES[0], again), bank.delta(NAMES[0], c))


@pytest.mark.parametrize("shape", [(6,), (10, 6), (2, 10, 6)])
def test_shape_is_checked(shape):
    with pytest.raises(ValueError, match=r"expected \[11, N\]"):
        MixingCoefficients(torch.zeros(shape), NAMES)


def test_what_is_not_finite_or_empty_never_becomes_coefficients():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            MixingCoefficients(torch.tensor([[value, 1.0]]), ("x",))
    for empty in (torch.zeros(0, 1, 4), torch.zeros(1, 0)):
        with pytest.raises(ValueError, match="there are no coefficients"):
            MixingCoefficients(empty, ("x",))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("transformer_blocks", 6), ("transformer_blocks.*", 6), ("transformer_blocks.{0-2}", 5), ("*", 11),
        ("transformer_blocks.1", 0), ("transformer_blocks.10", 1), ("*.proj_???", 2), ("*.attn.to_[qk]", 4),
        ("transformer_blocks.{3-9}", 0), ("ransformer_blocks", 0), ("transformer_block", 0),
        ("transformer_blocks.{0-30000000}", 6), ("{0-9}" * 50, 0), (f"transformer_blocks.{{0-{'9' * 5000}}}", 0),
        ("transformer_blocks.{2-0}", 0), ("*_blocks.{2-10}", 2), ("*.{2-10}", 2), ("transformer_blocks.{1-1}0", 1),
    ],
)  # fmt: skip
def test_patterns(pattern, count):
    if count:
        assert len(match_layers(pattern, NAMES)) == count
    else:
        with pytest.raises(ValueError, match=r"matches none of the 11 layers|at most 300"):
            match_layers(pattern, NAMES)


def test_a_misspelt_pattern_names_the_nearest():
    with pytest.raises(ValueError, match=r"single_transformer_blocks\.0\.proj_out"):
        match_layers("single_transformer_blocks.0.proj_uot", NAMES)


def test_tables_from_text():
    text = "# weaker first blocks\ntransformer_blocks.{0-4} = 0.5\n\n*.proj_out=1e-1 # less\n"
    assert parse_block_scales(text) == [("transformer_blocks.{0-4}", 0.5), ("*.proj_out", 0.1)]
    assert parse_overrides("single_transformer_blocks.* 7 = -0.3") == [("single_transformer_blocks.*", 7, -0.3)]
    assert parse_block_scales("") == []


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_block_scales, "a = 1\nb", "line 2: 'b' is not an assignment"),
        (parse_block_scales, "= 1", "line 1"),
        (parse_block_scales, "a = much", "line 1: 'much' in 'a = much' is not a number"),
        (parse_overrides, "a = 1", "line 1: 'a = 1' names no basis element"),
        (parse_overrides, "a -1 = 1", "names no basis element"),
        (parse_overrides, "a 1 = ", "is not a number"),
        (parse_overrides, f"a {'1' * 5000} = 1", "names no basis element"),
        (parse_block_scales, f"a = {'x' * 5000}", "line 1: 'x{3,}.*is not a number"),
        (parse_block_scales, "a = 1\n" * 10_001, "at most 10,000 lines"),
    ],
)
def test_bad_tables(parse, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert len(str(caught.value)) < 1000


def test_heatmap_shows_the_values():
    """The cell of the strongest coefficient is the brightest of the map, and a zero cell is dark."""
    values = torch.full((4, 5), 0.01)
    values[2, 3] = 0.96
    names = tuple(f"transformer_blocks.{i}.attn.to_q" for i in range(4))
    picture = torch.from_numpy(heatmap(MixingCoefficients(values, names)).copy()).float()
    dim = torch.from_numpy(heatmap(MixingCoefficients(torch.full((4, 5), 0.01), names)).copy()).float()
    assert picture.shape[-1] == 3 and picture.shape == dim.shape
    bright = (picture == torch.tensor([252.0, 253.0, 191.0])).all(-1)
    assert bright.any()
    ys, xs = bright.nonzero(as_tuple=True)
    assert int(xs.min()) == 116 + 3 * 40 and int(ys.max() - ys.min()) == 15


def test_a_heatmap_has_bounds():
    with pytest.raises(ValueError, match="no room for 2 layers by 1,000,000 basis elements"):
        heatmap(MixingCoefficients(torch.zeros(2, 1_000_000), ("x", "y")))


def test_heatmap_of_signed_coefficients_is_symmetric_about_zero():
    """Cells from the most negative to the most positive: the ends and the middle of the scale."""
    from lorweb_core.plot import DIVERGING, _colours, _most_used

    values = torch.tensor([[-0.8, -0.4, 0.0, 0.4, 0.8]])
    assert [tuple(colour) for colour in _colours(values, signed=True)[0].tolist()] == list(DIVERGING)
    assert [i for i, _ in _most_used(torch.tensor([[0.1, -0.9, 0.5]]), 2)] == [1, 2], "the strongest of either sign"


def test_bars_of_elements_that_are_all_used_alike_are_full():
    names = ("transformer_blocks.0.x", "transformer_blocks.1.x")
    values = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    picture = torch.from_numpy(heatmap(MixingCoefficients(values, names)).copy())
    blue = (picture == torch.tensor([96, 165, 250], dtype=torch.uint8)).all(-1).sum(dim=1)
    widths = blue[blue > 0].unique().tolist()
    assert widths == [96 // 4 + 1, 96 + 1]


def test_heatmap_of_signed_coefficients_differs_in_colour():
    c = signed()
    flipped = MixingCoefficients(-c.values, NAMES, softmax=False)
    assert (heatmap(c) != heatmap(flipped)).any()
    with pytest.raises(ValueError, match="a batch of 3"):
        heatmap(shares(batch=(3,)))


def test_thumbnail_has_one_size_and_shows_the_strongest_column():
    """The rows of a large bank share pixels, so a column that is strong in every layer is what remains bright."""
    names = tuple(f"single_transformer_blocks.{i}.proj_out" for i in range(700))
    values = torch.full((700, 10), 0.01)
    values[:, 7] = 0.91
    large = torch.from_numpy(thumbnail(MixingCoefficients(values, names)).copy())
    small = torch.from_numpy(thumbnail(shares()).copy())
    assert large.shape == small.shape == (THUMBNAIL[1], THUMBNAIL[0], 3)
    bright = (large == torch.tensor([252, 253, 191], dtype=torch.uint8)).all(-1)
    ys, xs = bright.nonzero(as_tuple=True)
    width = (int(xs.max()) - int(xs.min()) + 1, int(ys.max()) - int(ys.min()) + 1)
    assert 36 <= width[0] <= 42 and width[1] > 250, "a tenth of the map's width, and all of its height"
    assert int(xs.min()) == pytest.approx(72 + 0.7 * (THUMBNAIL[0] - 72 - 14), abs=1)


def test_thumbnail_of_signed_coefficients_and_of_a_batch():
    c = signed()
    assert (thumbnail(c) != thumbnail(MixingCoefficients(-c.values, NAMES, softmax=False))).any()
    with pytest.raises(ValueError, match="a batch of 3"):
        thumbnail(shares(batch=(3,)))
