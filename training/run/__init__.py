"""A training run: what it needs, its loop, its objective, and what it leaves."""
