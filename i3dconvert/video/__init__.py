"""Files of videos, volumes and images: decoding, preprocessing, and class names.

Imports `files` and `errors`.
"""
