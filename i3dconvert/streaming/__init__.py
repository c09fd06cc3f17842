"""Run a network on a live video, one step of frames at a time, with the outputs that it has on the whole video.

Imports `export`, `checkpoint`, `lift`, and the rooms below them.
"""

from i3dconvert.streaming.stream import Stream, stream

__all__ = ["Stream", "stream"]
