"""A network on a live video: one step of frames at a time, exactly what it is on the whole video."""

from i3dconvert.streaming.stream import Stream, stream

__all__ = ["Stream", "stream"]
