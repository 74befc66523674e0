"""What text encoders say, where they are freed as soon as they have said it."""

import torch

from training.bases.tiny_klein import make_klein
from training.config import load_config
from training.encoders.text import LivePrompts


def test_the_negative_prompt_is_known_where_all_prompts_have_words(tmp_path):
    base = make_klein(tmp_path / "base")
    settings = ["run=r", "data.manifest=m", f"base.path={base}", "base.dtype=float32", "data.prompt_tokens=8"]
    config = load_config("training/configs/tiny_klein.yaml", settings)
    prompts = LivePrompts(config, torch.device("cpu"), ["make it snow"])
    words, negative = prompts(["make it snow", prompts.family.negative], {})
    assert words.keys() == negative.keys() and not torch.equal(words["tokens"], negative["tokens"])
