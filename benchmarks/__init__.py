"""Measurements, run by hand: ``python dev.py bench NAME``. Speed is reported as a ratio, side by side in one run."""
