"""The models that banks are made for: the only room that names their classes."""
