"""Videos, volumes and images as files have them: decoding, preprocessing, and the names of classes.

It imports errors and files alone.
"""
