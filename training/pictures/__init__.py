"""Drawn data: photographs, textures and scenes, their edits, and recipes of both."""
