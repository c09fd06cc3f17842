"""Inputs that are what they should be before they are opened, outputs that appear whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import mmap
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from i3dconvert.errors import I3DError, OutputError


def cache_folder() -> Path:
    """i3dconvert's part of the user's cache; for a user without a home, a path that nothing can be written to."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "i3dconvert"
    except RuntimeError:  # there is no home
        return Path(os.devnull) / "i3dconvert"


def check_input(path: Path, error: type[I3DError], wanted: str) -> None:
    """Raise `error` unless `path` is a regular file that may be read: a pipe would be waited on for ever."""
    if path.is_dir():
        raise error(f"{path} is a directory; name {wanted}")
    if not path.exists():
        raise error(f"there is no file {path}")
    if not path.is_file():
        raise error(f"{path} is a pipe or a device; name {wanted}")
    if not os.access(path, os.R_OK):
        raise error(f"no permission to read {path}")


MOST_TEXT = 2**23
"""Bytes of names and settings, which no network comes near: a file of more would fill memory before it is refused."""
_TIMES = 4
"""What a file may unpack to, of its own size: weights hardly shrink when they are packed."""


def check_text(size: int, what: str, error: type[I3DError], most: int = MOST_TEXT) -> None:
    """Raise `error` where `what` (names, settings, rules) has more than `most` bytes, 8 MiB by default."""
    if size > most:
        raise error(f"{what} has {size / 2**20:.0f} MiB of names and settings; a network has less than {most >> 20}")


def check_unpacked(path: Path, size: int, error: type[I3DError]) -> None:
    """Raise `error` where `path` would unpack to `size` bytes, many times its own."""
    packed = path.stat().st_size
    if size > _TIMES * packed + MOST_TEXT:
        raise error(f"{path} has {packed / 2**20:.1f} MiB and unpacks to {size / 2**20:,.0f} MiB; nothing was unpacked")


WEIGHTS = "model.safetensors"
"""In a folder as transformers has them."""


def in_folder(path: Path) -> Path:
    """The weights in a folder as transformers has them; any other path as it is."""
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def check_output(path: Path, force: bool, folder: bool = False) -> None:
    """Raise `OutputError` early, before any work, when `path` can't become an output file, or `folder`."""
    if path.is_dir() and not folder:
        raise OutputError(f"{path} is a directory; name a file")
    if path.is_file() and folder:
        raise OutputError(f"{path} is a file; name a folder")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OutputError(f"{path} is a device or a pipe; name a file")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; --force replaces it, -o names another file")
    if not path.parent.is_dir():
        raise OutputError(f"there is no directory {path.parent} to write {path.name} in")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"no permission to write in {path.parent}")


@contextmanager
def replacing(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a place beside `path` to write to; on success it is flushed to disk and renamed to `path`.

    On any error, Ctrl-C included, what was written is removed and an earlier file at `path` is left as it was.
    Raises `OutputError` when `path` exists (without `force`) or can't be written.
    """
    check_output(path, force)
    _clear_strays(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if force:
            partial.replace(path)
        else:
            _place_new(partial, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _place_new(partial: Path, path: Path) -> None:
    """Rename that never replaces: a file that came to be at `path` meanwhile is somebody's."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise OutputError(f"{path} exists already; --force replaces it, -o names another file") from None
    except OSError:  # a file system without hard links
        partial.replace(path)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing_in(folder: Path, force: bool = False) -> Iterator[Path]:
    """Yield a folder to write files to, on success moved to `folder`, or into it where it exists (with `force`)."""
    check_output(folder, force, folder=True)
    with workshop(folder) as work:
        yield work
        if not folder.exists():
            work.rename(folder)
        else:
            files = sorted(work.iterdir())
            for file in files:
                check_output(folder / file.name, force=True)
            for file in files:
                file.replace(folder / file.name)
        _sync_directory(folder)


@contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """A folder beside `path` to make it in where that takes several steps or files; it is removed afterwards."""
    _clear_strays(path)
    folder = path.with_name(f".{path.name}.work.{os.getpid()}.partial")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear_strays(path: Path) -> None:
    """Remove what a killed process left of an earlier attempt at `path`."""
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = stray.name.rsplit(".", 2)[-2]
        if pid.isdigit() and not _alive(int(pid)):
            if stray.is_dir():
                shutil.rmtree(stray, ignore_errors=True)
            with suppress(OSError):
                stray.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # there is no asking without a signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def release(addresses: Collection[int]) -> None:
    """Take the mapped files that lie at any of `addresses` out of this process's memory; reading brings them back.

    Changes that were made to private mappings in place are lost: only for what was just read. Where the system has no
    such call, nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    advise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if inode != "0" and any(start <= address < end for address in addresses):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
