"""Classify every video of a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i3dconvert.classification.clips import Classifier, classify, mean_of, to_dict
from i3dconvert.errors import FramesError, MediaError, OutputError
from i3dconvert.files import check_output
from i3dconvert.progress import Progress, silent
from i3dconvert.video.media import PICTURES


@dataclass(frozen=True)
class Done:
    """The result of a run over a folder."""

    output: Path
    classified: int
    failed: int
    passed_over: int
    """Videos that an earlier run had already classified."""
    seconds: float


def classify_folder(
    classifier: Classifier,
    folder: Path,
    output: Path,
    progress: Progress = silent,
    *,
    force: bool = False,
    top: int = 5,
    **options: Any,
) -> Done:
    """Classify every video and picture below a folder, and append a JSON line for each to `output`.

    A line has `source`, and either the `best` classes and `moments` or the `error` of a file that can't be read. Files
    whose line has classes are skipped, so that an interrupted run resumes; `force` starts again. `options` are those of
    `classify`. Raises `MediaError`, `OutputError`.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (*VIDEOS, *PICTURES))
    if not files:
        raise MediaError(f"there are no videos or pictures in {folder}")
    check_output(output, force=True)
    known, told = (set(), set()) if force else _known(output)
    counts, started = {True: 0, False: 0}, time.perf_counter()
    try:
        with output.open("w" if force else "a", encoding="utf-8") as lines:
            for index, path in enumerate(files):
                source = path.relative_to(folder).as_posix()
                if source in known:
                    continue
                progress(f"{source}, {index + 1} of {len(files)}", index / len(files))
                line = _line(classifier, path, top, options)
                counts["error" not in line] += 1
                if (text := json.dumps({"source": source, **line})) not in told:
                    lines.write(f"{text}\n")
                    lines.flush()
    except OSError as error:
        raise OutputError(f"can't write {output}: {error.strerror or error}") from None
    return Done(output, counts[True], counts[False], len(known), time.perf_counter() - started)


VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def _line(classifier: Classifier, path: Path, top: int, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        moments = list(classify(classifier, path, top=top, **options))
    except (MediaError, FramesError) as error:
        return {"error": str(error)}
    best = [{"class": name, "probability": score} for name, score in mean_of(moments, top)]
    return {"best": best, "moments": [to_dict(moment) for moment in moments]}


_BEGIN = '{"source": "'


def _known(output: Path) -> tuple[set[str], set[str]]:
    """Return the files whose line has classes, and all lines; a last line that was cut off is removed.

    A file that is not from an earlier run is left as it is.
    """
    if not output.exists():
        return set(), set()
    try:
        *lines, cut = output.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines]
        known = {str(entry["source"]) for entry in entries if "error" not in entry}
        if cut[: len(_BEGIN)] != _BEGIN[: len(cut)]:
            raise ValueError(cut)
        if cut:
            output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return known, set(lines)
    except (ValueError, TypeError, KeyError):
        raise OutputError(f"{output} is not from an earlier run; --force overwrites it, -o names another") from None
