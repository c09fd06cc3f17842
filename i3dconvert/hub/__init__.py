"""Folders for the Hugging Face hub, and `from_pretrained`, `save_pretrained` and `push_to_hub`."""
