"""What training does about the versions of its libraries."""

import torch

import training  # noqa: F401


def test_training_avoids_cudnns_attention():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
