"""Folders for the Hugging Face hub, and `from_pretrained`, `save_pretrained` and `push_to_hub`.

Imports `reporting` for its templates, `verification`, `export`, `checkpoint`, and the rooms below them.
"""
