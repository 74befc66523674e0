"""Encode Analogy against CLIP's reference preprocessing and model, on real photographs and ComfyUI's own ViT-L."""

import comfy.clip_vision
import comfy.model_management
import pytest
import torch
from lorweb_pack.lorweb_core import BankConfig, BasisBank, CanvasGeometry
from lorweb_pack.lorweb_core.query import QUERY_MODES, build_query
from lorweb_pack.nodes.analogy import EncodeAnalogy
from lorweb_pack.nodes.basis import LoadBasis
from lorweb_pack.nodes.image_encoder import ClipVisionEncoder, center_crop, normalise
from lorweb_pack.nodes.siglip import SiglipVision
from PIL import Image
from safetensors.torch import load_file, save_file

from harness.comfyui import ROOT
from harness.edit_graph import sepia
from harness.small_flux_pack.loader import small_vision as make_small_vision
from harness.small_models import RANDOM_VIT_L, SMALL_BANK, random_bank

LAYERS = {"transformer_blocks.0.attn.to_q": (8, 8), "single_transformer_blocks.0.proj_out": (16, 8)}
VIT_L = BankConfig(num_loras=4, rank=2, key_dim=8, query_dim=3 * 768)
SMALL_TOKENS = 17
SMALL = BankConfig(num_loras=4, rank=2, key_dim=8, query_dim=3 * 24)


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vit_path(small_models):
    return small_models / "clip_vision" / RANDOM_VIT_L


@pytest.fixture(scope="module")
def clip_vision(vit_path):
    return comfy.clip_vision.load(str(vit_path))


@pytest.fixture(scope="module")
def small_vision():
    """ComfyUI's own vision model in a small size, random weights."""
    return make_small_vision(24)


@pytest.fixture(scope="module")
def reference(vit_path):
    """transformers' CLIP vision model and CLIP's own preprocessing, with the same weights: PIL images -> [B, 768]."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
        projection_dim=768,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    missing, unexpected = model.load_state_dict(load_file(vit_path), strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    processor = CLIPImageProcessorPil()

    @torch.no_grad()
    def encode(images):
        return model(**processor(images=images, return_tensors="pt")).image_embeds

    return encode


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    return BasisBank.load(random_bank(path, LAYERS, 4, 2, 8, SMALL.query_dim))


@pytest.fixture(scope="module")
def triplet(photographs):
    a = photographs["astronaut"]
    return a, sepia(a), photographs["chelsea"]


def tensor(photograph):
    return torch.from_numpy(photograph).float().div(255)[None]


def picture(quadrant):
    return Image.fromarray(quadrant[0].mul(255).round().byte().numpy())


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_query_agrees_with_the_reference(clip_vision, reference, triplet):
    """The quadrants of the canvas, through ComfyUI's encoder and through CLIP's own preprocessing and model."""
    geometry = CanvasGeometry.plan(*triplet[2].shape[:2])
    a, a_prime = (geometry.quadrant(tensor(image), "crop") for image in triplet[:2])
    b = geometry.quadrant(tensor(triplet[2]), "stretch")
    z = build_query("cat-aa'b", a, a_prime, b, ClipVisionEncoder(clip_vision, VIT_L))
    expected = reference([picture(a), picture(a_prime), picture(b)])
    assert z.shape == (1, 2304)
    assert cosine(z, expected) >= 0.999
    for part, whole in zip(z.view(3, 768), expected):
        assert cosine(part, whole) >= 0.999
    assert cosine(expected[0], expected[2]) < 0.95, (
        "the encoder must tell photographs apart for this test to mean anything"
    )


def test_photographs_as_they_are(clip_vision, reference, photographs):
    """Without any fitting of ours: every photograph straight into both encoders."""
    encoder = ClipVisionEncoder(clip_vision, VIT_L)
    for name, photograph in photographs.items():
        found = encoder.pooled(tensor(photograph))
        assert cosine(found, reference([Image.fromarray(photograph)])) >= 0.999, name


def encode(bank, clip_vision, a, a_prime, b, fit="crop", encoder_crop="center"):
    return EncodeAnalogy.execute(bank, clip_vision, a, a_prime, b, fit, encoder_crop).args[0]


def test_coefficients_depend_on_all_three_images(bank, small_vision, triplet, photographs):
    a, a_prime, b = map(tensor, triplet)
    c = encode(bank, small_vision, a, a_prime, b)
    assert c.values.shape == (2, 4)
    other = tensor(photographs["coffee"])
    for changed in ((other, a_prime, b), (a, other, b), (a, a_prime, other)):
        assert not torch.allclose(encode(bank, small_vision, *changed).values, c.values, atol=1e-4)


def test_several_pairs_and_several_b_are_averaged(bank, small_vision, triplet, photographs):
    a, a_prime, b = map(tensor, triplet)
    second = tensor(photographs["chelsea"]).flip(2)
    pairs = encode(bank, small_vision, a.repeat(2, 1, 1, 1), torch.cat((a_prime, a)), b)
    single = [encode(bank, small_vision, a, x, b).values for x in (a_prime, a)]
    torch.testing.assert_close(pairs.values, (single[0] + single[1]) / 2, rtol=1e-3, atol=1e-5)
    many = encode(bank, small_vision, a, a_prime, torch.cat((b, second)))
    single = [encode(bank, small_vision, a, a_prime, x).values for x in (b, second)]
    torch.testing.assert_close(many.values, (single[0] + single[1]) / 2, rtol=1e-3, atol=1e-5)


def test_unequal_pairs_are_refused(bank, small_vision, triplet):
    a, a_prime, b = map(tensor, triplet)
    with pytest.raises(ValueError, match="equally many"):
        encode(bank, small_vision, a.repeat(2, 1, 1, 1), a_prime, b)


def test_alpha_channels_are_ignored(bank, small_vision, triplet):
    images = [tensor(x) for x in triplet]
    with_alpha = [torch.cat((x, torch.rand(*x.shape[:3], 1)), -1) for x in images]
    assert torch.equal(encode(bank, small_vision, *with_alpha).values, encode(bank, small_vision, *images).values)


def test_a_small_b_is_not_enlarged(bank, small_vision, triplet):
    """Images that are quadrants already reach the encoder as they are."""
    images = [tensor(image)[:, :64, :64] for image in triplet]
    query = build_query(bank.config.query_mode, *images, ClipVisionEncoder(small_vision, bank.config))
    torch.testing.assert_close(encode(bank, small_vision, *images).values, bank.mix(query).mean().values)


def edge_marks(size=(200, 600)):
    """A grey image, and the same with marks at its far left and right edges only."""
    plain = torch.full((1, *size, 3), 0.5)
    marked = plain.clone()
    marked[:, :, :40] = torch.tensor([1.0, 0.0, 0.0])
    marked[:, :, -40:] = torch.tensor([0.0, 0.0, 1.0])
    return plain, marked


@pytest.mark.parametrize(("crop", "sees_edges"), [("center", False), ("pad", True), ("stretch", True)])
def test_encoder_crop(small_vision, crop, sees_edges):
    encoder = ClipVisionEncoder(small_vision, SMALL, crop)
    plain, marked = map(encoder.pooled, edge_marks())
    assert torch.allclose(plain, marked, atol=1e-4) != sees_edges


@pytest.mark.parametrize("mode", list(QUERY_MODES))
def test_every_query_mode(tmp_path, small_vision, triplet, mode):
    """From images to a finite delta in every mode; token modes flatten 17 (x 3) tokens of 64 here."""
    spec = QUERY_MODES[mode]
    embedding = 24 if spec.hidden is None else SMALL_TOKENS * 64 * len(spec.hidden)
    layers = {"transformer_blocks.0.attn.to_q": (8, 8)}
    path = tmp_path / "bank.safetensors"
    bank = BasisBank.load(random_bank(path, layers, 2, 1, 4, embedding * spec.parts, query_mode=mode))
    assert bank.config.query_mode == mode and bank.config.embedding_dim == embedding
    c = encode(bank, small_vision, *map(tensor, triplet))
    assert torch.isfinite(bank.delta("transformer_blocks.0.attn.to_q", c)).all()


def test_tokens_are_the_hidden_states_of_the_reference(clip_vision, vit_path, triplet):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    weights = {k: v for k, v in load_file(vit_path).items() if "visual_projection" not in k}
    names = model.state_dict().keys()
    strip = not any(name.startswith("vision_model.") for name in names)
    model.load_state_dict(
        {k.removeprefix("vision_model.") if strip else k: v for k, v in weights.items()}, strict=False
    )
    square = tensor(triplet[0])
    mode = QUERY_MODES["paa'b3"]
    config = BankConfig(num_loras=2, rank=1, key_dim=4, query_dim=3 * 257 * 1024, query_mode="paa'b3")
    found = ClipVisionEncoder(clip_vision, config).tokens(square, mode.hidden)
    pixels = normalise(center_crop(square, 224), clip_vision.image_mean, clip_vision.image_std)
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    expected = torch.cat([states[i] for i in mode.hidden], dim=1)
    assert found.shape == (1, 3 * 257, 1024)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_an_encoder_of_another_width_is_refused(tmp_path, small_vision, triplet):
    bank = BasisBank.load(random_bank(tmp_path / "bank.safetensors", LAYERS, 4, 2, 8, 3 * 768))
    message = r"gives 24 numbers per image, but the bank was trained with 768 .*clip-vit-large-patch14.safetensors"
    with pytest.raises(ValueError, match=message):
        encode(bank, small_vision, *map(tensor, triplet))


def test_the_starter_with_another_encoder_names_its_own(clip_vision, triplet):
    bank = BasisBank.load(ROOT / "starter" / "bank.safetensors")
    message = r"gives 768 numbers per image, but the bank was trained with 128 .*clip_vision of Load LoRWeB Starter"
    with pytest.raises(ValueError, match=message):
        encode(bank, clip_vision, *map(tensor, triplet))


def test_interrupt_stops_loading(small_models):
    """ComfyUI's interrupt button ends the load of a bank between two layers."""
    import folder_paths

    folder_paths.add_model_folder_path("lorweb", str(small_models / "lorweb"))
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        LoadBasis.execute(SMALL_BANK)
    bank, info = LoadBasis.execute(SMALL_BANK).args
    assert "40 (28 in transformer_blocks, 12 in single_transformer_blocks)" in info and bank.config.num_loras == 8
    assert bank[0] is next(iter(bank.layers.values())).A  # so ComfyUI's cache counts it


def test_a_bank_is_loaded_again_when_it_or_its_yaml_changes(tmp_path):
    import folder_paths

    folder_paths.add_model_folder_path("lorweb", str(tmp_path))
    random_bank(tmp_path / "changing.safetensors", LAYERS, 4, 2, 8, SMALL.query_dim)
    assert LoadBasis.fingerprint_inputs(None) == LoadBasis.fingerprint_inputs(None), "of a name through a link"
    seen = [LoadBasis.fingerprint_inputs("changing.safetensors")]
    assert LoadBasis.fingerprint_inputs("changing.safetensors") == seen[0]
    for text in ("config: {}", "config: {name: bank}"):
        (tmp_path / "changing.yaml").write_text(text)
        seen.append(LoadBasis.fingerprint_inputs("changing.safetensors"))
    random_bank(tmp_path / "changing.safetensors", LAYERS, 8, 2, 8, SMALL.query_dim)
    seen.append(LoadBasis.fingerprint_inputs("changing.safetensors"))
    assert len(set(seen)) == 4


@pytest.fixture(scope="module")
def siglip_path(tmp_path_factory):
    """SigLIP 2 base's architecture at full width with two layers, random weights, and a text tower's key beside it."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    weights = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=2)).state_dict()
    weights = {f"vision_model.{k.removeprefix('vision_model.')}": w.contiguous() for k, w in weights.items()}
    path = tmp_path_factory.mktemp("siglip") / "siglip.safetensors"
    save_file({**weights, "logit_scale": torch.zeros(1)}, path)
    return path


def test_siglip_agrees_with_the_reference(siglip_path, photographs):
    """The pooled output through our loader and transformers' own processor and model."""
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    weights = load_file(siglip_path)
    config = BankConfig(4, 2, 8, query_dim=3 * 768, encoder="google/siglip2-base-patch16-224")
    encoder = ClipVisionEncoder(SiglipVision(weights, "siglip.safetensors"), config)
    model = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=2)).eval()
    names = {k.removeprefix("vision_model."): w for k, w in weights.items()}
    model.load_state_dict({k: names[k.removeprefix("vision_model.")] for k in model.state_dict()})
    # The preprocessing that google/siglip2-base-patch16-224 publishes: 224 x 224, bilinear, mean and deviation 0.5.
    processor = SiglipImageProcessorPil(
        size={"height": 224, "width": 224}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    for name, photograph in photographs.items():
        found = encoder.pooled(tensor(photograph))
        pixels = processor(images=[Image.fromarray(photograph)], return_tensors="pt")
        expected = model(**pixels).pooler_output
        assert found.shape == (1, 768) and cosine(found, expected) >= 0.999, name


@pytest.mark.parametrize(
    ("encoder", "kind", "loader"),
    [("google/siglip2-base-patch16-224", "CLIP", "Load SigLIP 2"), (VIT_L.encoder, "SigLIP", "Load CLIP Vision")],
)
def test_an_encoder_of_the_other_family_is_refused(clip_vision, siglip_path, photographs, encoder, kind, loader):
    """CLIP ViT-L/14 and SigLIP 2 base both give 768 numbers."""
    model = clip_vision if kind == "CLIP" else SiglipVision(load_file(siglip_path), "siglip.safetensors")
    config = BankConfig(4, 2, 8, query_dim=3 * 768, encoder=encoder)
    with pytest.raises(ValueError, match=f"is a {kind} model, but the bank was trained with {encoder}.*{loader}"):
        ClipVisionEncoder(model, config).pooled(tensor(photographs["astronaut"]))


def test_a_siglip_of_unknown_width_is_refused(siglip_path):
    weights = load_file(siglip_path)
    weights["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(640, 3, 16, 16)
    with pytest.raises(ValueError, match=r"width 640, .* how many heads .* 768, 1024, 1152, 1536"):
        SiglipVision(weights, "siglip.safetensors")


def test_so400m_sees_384_pixels():
    """Of which its patches cover 378."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    shape = {"hidden_size": 1152, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}
    model = SiglipVisionModel(SiglipVisionConfig(**shape, intermediate_size=64, num_hidden_layers=1)).eval()
    weights = {f"vision_model.{k.removeprefix('vision_model.')}": w for k, w in model.state_dict().items()}
    ours = SiglipVision(weights, "so400m.safetensors")
    pixels = torch.randn(1, 3, 384, 384)
    assert ours.image_size == 384
    torch.testing.assert_close(ours.model(pixels)[2], model(pixel_values=pixels).pooler_output)


def test_a_clip_checkpoint_is_no_siglip(vit_path):
    with pytest.raises(ValueError, match=r"vit.safetensors is not a SigLIP checkpoint.*models/clip_vision"):
        SiglipVision(load_file(vit_path), "vit.safetensors")


def test_a_siglip_whose_layers_have_gaps_is_refused(siglip_path):
    """A single name must not make a million layers."""
    weights = {**load_file(siglip_path), "vision_model.encoder.layers.999999.y": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"siglip.safetensors has 3 layers, but one is numbered 999999"):
        SiglipVision(weights, "siglip.safetensors")


def test_an_incomplete_siglip_is_refused(siglip_path):
    weights = load_file(siglip_path)
    del weights["vision_model.encoder.layers.1.mlp.fc2.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as .*layers\.1\.mlp\.fc2"):
        SiglipVision(weights, "siglip.safetensors")
