"""Files of videos, volumes and images: decoding, preprocessing, and class names.

It imports only errors and files.
"""
