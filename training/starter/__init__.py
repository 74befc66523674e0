"""The starter: a small base and bank that are trained here, and the procedural data that they are trained on."""
