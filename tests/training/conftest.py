"""Fixtures of the training tier."""

import training  # noqa: F401  (makes peft and diffusers importable, before any test module asks for them)
