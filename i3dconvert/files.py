"""Check inputs before they are opened, and write outputs atomically."""

from __future__ import annotations

import ctypes
import glob
import mmap
import os
import shutil
import sys
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from i3dconvert.errors import I3DError, OutputError


def cache_folder() -> Path:
    """Return i3dconvert's part of the user's cache; for users without a home, a path that can't be written to."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "i3dconvert"
    except RuntimeError:  # the user has no home
        return Path(os.devnull) / "i3dconvert"


def check_input(path: Path, error: type[I3DError], wanted: str) -> None:
    """Raise `error` unless `path` is a readable regular file: reading a pipe could block for ever."""
    check_merged(path, error)
    if path.is_dir():
        raise error(f"{path} is a directory; give {wanted}")
    if not path.exists():
        raise error(f"there is no file {path}")
    if not path.is_file():
        raise error(f"{path} is a pipe or a device; give {wanted}")
    if not os.access(path, os.R_OK):
        raise error(f"no permission to read {path}")


def check_merged(path: Path, error: type[I3DError]) -> None:
    """Raise `error` if `path` is a folder that PEFT wrote, or a file of it: adapters alone are no network."""
    folder = path if path.is_dir() else path.parent
    its_own = path.is_dir() or not path.exists() or path.name.startswith("adapter_model")
    if its_own and (folder / "adapter_config.json").is_file():
        raise error(
            f"{folder} has PEFT's adapters without their network; merge them first: "
            f"PeftModel.from_pretrained(network, {str(folder)!r}).merge_and_unload(), and save the result"
        )


MOST_TEXT = 2**23
"""The most bytes of names and settings, far above any network's; larger files would fill memory before an error."""
_TIMES = 4
"""The most times its own size that a file may unpack to: weights hardly compress."""


def check_text(size: int, what: str, error: type[I3DError], most: int = MOST_TEXT) -> None:
    """Raise `error` if `what` (names, settings, rules) has more than `most` bytes, by default 8 MiB."""
    if size > most:
        raise error(f"{what} has {size / 2**20:.0f} MiB of names and settings; at most {most >> 20} are allowed")


def check_unpacked(path: Path, size: int, error: type[I3DError]) -> None:
    """Raise `error` if `path` would unpack to `size` bytes, many times its own size."""
    packed = path.stat().st_size
    if size > _TIMES * packed + MOST_TEXT:
        raise error(f"{path} has {packed / 2**20:.1f} MiB and unpacks to {size / 2**20:,.0f} MiB; nothing was unpacked")


WEIGHTS = "model.safetensors"
"""The weights in a folder of transformers."""


def in_folder(path: Path) -> Path:
    """Return the path of the weights in a folder of transformers; any other path is unchanged."""
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def check_output(path: Path, force: bool, folder: bool = False) -> None:
    """Raise `OutputError` before any work if `path` can't become an output file, or a `folder`."""
    if path.is_dir() and not folder:
        raise OutputError(f"{path} is a directory; give a file")
    if path.is_file() and folder:
        raise OutputError(f"{path} is a file; give a folder")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OutputError(f"{path} is a device or a pipe; give a file")
    if path.exists() and not force:
        raise OutputError(f"{path} already exists; --force overwrites it, -o names another file")
    if not path.parent.is_dir():
        raise OutputError(f"there is no directory {path.parent} to write {path.name} in")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"no permission to write to {path.parent}")


@contextmanager
def replacing(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, it is flushed to disk and renamed to `path`.

    On any error, including Ctrl-C, it is removed, and an existing file at `path` stays unchanged. Raises `OutputError`
    if `path` exists (without `force`) or can't be written.
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
    """Rename without overwriting a file that was created at `path` meanwhile."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise OutputError(f"{path} already exists; --force overwrites it, -o names another file") from None
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
    """Yield a temporary folder; on success, it becomes `folder`, or its files move into it (with `force`)."""
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
    """Yield a temporary folder beside `path`, for outputs of several steps or files; it is removed afterwards."""
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
    if sys.platform == "win32":  # it can't be asked without a signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def release(addresses: Collection[int]) -> None:
    """Drop the mapped files at any of `addresses` from this process's memory; reading loads them again.

    In-place changes to private mappings are lost, so use it only for data that was just read. Does nothing on systems
    without such a call.
    """
    if not sys.platform.startswith("linux"):
        return
    advise, ordered = ctypes.CDLL(None).madvise, sorted(addresses)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if inode != "0" and bisect_left(ordered, start) < bisect_left(ordered, end):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
