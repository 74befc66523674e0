"""The attention that Refine Edit differentiates: ComfyUI's to the last digit, by kernels that have a good gradient."""

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from lorweb_pack.nodes import differentiable
from lorweb_pack.nodes.differentiable import attention

B, HEADS, T, D = 2, 3, 5, 8
MASKS = {"none": None, "of all": (T, T), "of each": (B, T, T), "of each head": (B, HEADS, T, T)}


def rows(shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("skip_output_reshape", [False, True])
@pytest.mark.parametrize("skip_reshape", [False, True])
def test_it_is_what_comfyui_computes(skip_reshape, skip_output_reshape, mask):
    q, k, v = (rows((B, HEADS, T, D) if skip_reshape else (B, T, HEADS * D), seed) for seed in range(3))
    shape = MASKS[mask]
    options = {"mask": None if shape is None else rows(shape, 3), "skip_reshape": skip_reshape}
    options |= {"skip_output_reshape": skip_output_reshape, "transformer_options": {}}
    expected = attention_pytorch(q, k, v, HEADS, **options)
    torch.testing.assert_close(attention(attention_pytorch, q, k, v, HEADS, **options), expected, rtol=0, atol=0)


def test_cudnn_is_not_asked(monkeypatch):
    asked = []

    def spy(*args, **kwargs):
        asked.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()))
        return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(differentiable, "scaled_dot_product_attention", spy)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    attention(attention_pytorch, *(rows((B, T, HEADS * D), seed) for seed in range(3)), HEADS)
    assert asked == [(False, True)] and torch.backends.cuda.cudnn_sdp_enabled() == before
