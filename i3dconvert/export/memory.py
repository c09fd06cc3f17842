"""Bound the memory that onnxruntime takes for a stranger's graph, whose sizes may be known only when it runs."""

from __future__ import annotations

import glob
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from i3dconvert.errors import DeviceError

MORE = "I3DCONVERT_MEMORY"
"""The environment variable with the GiB that a file may take at least."""
_FEWEST, _OF_CLIP, _OF_FILE, _MOST = 2**29, 128, 24, 2**33
"""A run may take the bytes of the clip in float32, or of the file, as often as this; 512 MiB at least, 8 GiB at most.

A convolution over 64 channels at full size, its input and its three taps take 107 times the clip's; the attention of a
ViT-B over all tokens of 64 frames, 22 times its file's.
"""


def needed(path: Path, shapes: Iterable[tuple[int, ...]] = ()) -> int:
    """Return the bytes that a file may take for inputs of these shapes, beyond those taken already."""
    files = sum(Path(file).stat().st_size for file in glob.glob(f"{glob.escape(str(path))}*"))
    clip = 4 * sum(map(math.prod, shapes))
    most = min(max(_FEWEST, _OF_CLIP * clip, _OF_FILE * files), _MOST)
    try:
        return max(most, int(float(os.environ.get(MORE) or 0) * 2**30))
    except (ValueError, OverflowError):
        raise DeviceError(f"{MORE} is {os.environ[MORE]!r}; give a number of GiB") from None


class _Limit:
    """The process's limit while files of strangers run, in any number of threads: the lowest of theirs."""

    def __init__(self) -> None:
        self.lock, self.active, self.before = Lock(), list[int](), (0, 0)

    def begin(self, limit: int) -> None:
        import resource

        with self.lock:
            if not self.active:
                self.before = resource.getrlimit(resource.RLIMIT_DATA)
            self.active.append(limit)
            self.set()

    def end(self, limit: int) -> None:
        with self.lock:
            self.active.remove(limit)
            self.set()

    def set(self) -> None:
        """Set the lowest limit, or the one before if none is active."""
        import resource

        known = [one for one in (*self.before, *self.active) if one != resource.RLIM_INFINITY]
        soft = min(known) if self.active else self.before[0]
        resource.setrlimit(resource.RLIMIT_DATA, (soft, self.before[1]))


_LIMIT = _Limit()


@contextmanager
def bounded(most: int | None) -> Iterator[None]:
    """Let this process take `most` more bytes while active; None, or a system other than Linux: any number."""
    if most is None or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + most
    _LIMIT.begin(limit)
    try:
        yield
    finally:
        _LIMIT.end(limit)
