"""Classify many videos on many cores or machines: an exported ONNX file, a folder or a list of URIs, and Ray Data.

    python examples/many_videos.py NETWORK.onnx FOLDER|LIST.txt OUTPUT [--workers N] [--address auto]

OUTPUT is a folder of Parquet files, local or a URI (s3://…, gs://…), with a row for each video: `source`, the best
`classes` and their `probabilities`, and the `error` of one that can't be read. Videos that already have a row
are skipped, so that an interrupted run resumes. It runs on this machine, or with --address on an existing cluster.
Workers on other machines need i3dconvert[video] and access to NETWORK and OUTPUT.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import fs

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "classes": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float64()),
        "error": pa.string(),
    }
)


class Classify:
    """A worker: loads the network once and classifies one video after the other."""

    def __init__(self, network: str, top: int, options: dict[str, Any]) -> None:
        from i3dconvert.classification import load_classifier

        self.classifier, self.top, self.options = load_classifier(network), top, options

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self.row(source) for source in batch["source"].to_pylist()], SCHEMA)

    def row(self, source: str) -> dict[str, Any]:
        from i3dconvert.classification import classify, mean_of
        from i3dconvert.errors import I3DError

        with tempfile.TemporaryDirectory() as folder:
            try:
                path = here(source, Path(folder))
                best = mean_of(list(classify(self.classifier, path, top=self.top, **self.options)), self.top)
            except (I3DError, OSError) as error:
                return {"source": source, "classes": [], "probabilities": [], "error": str(error)}
        classes, probabilities = zip(*best, strict=True)
        return {"source": source, "classes": classes, "probabilities": probabilities, "error": ""}


def here(source: str, folder: Path) -> Path:
    """Return the video as a local file: itself, or a copy in `folder`."""
    if "://" not in source:
        return Path(source)
    system, path = fs.FileSystem.from_uri(source)
    copy = folder / Path(path).name
    with system.open_input_stream(path) as stream, copy.open("wb") as file:
        shutil.copyfileobj(stream, file)
    return copy


def sources(given: str) -> list[str]:
    """Return the videos below a folder, or the lines of a file: paths and URIs."""
    path = Path(given)
    if path.is_dir():
        return sorted(str(file.resolve()) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return list(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))


def done(output: str) -> set[str]:
    """Return the videos that have a row; remove files that an interrupted run left incomplete."""
    system, folder = fs.FileSystem.from_uri(output)
    found: set[str] = set()
    for file in system.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        if file.extension == "parquet":
            try:
                found.update(pq.read_table(file.path, columns=["source"], filesystem=system)["source"].to_pylist())
            except pa.ArrowInvalid:
                system.delete_file(file.path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="an exported .onnx file")
    parser.add_argument("videos", help="a folder, or a text file with a path or URI in each line")
    parser.add_argument("output", help="the folder of Parquet files")
    parser.add_argument("--address", help="address of a Ray cluster; by default only this machine")
    parser.add_argument("--workers", type=int, help="networks in parallel; by default one per machine")
    parser.add_argument("--at-once", type=int, default=4, help="videos per Parquet file")
    parser.add_argument("--top", type=int, default=5, help="classes per video")
    parser.add_argument("--frames", type=int, help="frames per window; by default the network's own number")
    parser.add_argument("--fps", type=float, help="frames per second to use; by default all")
    options = parser.parse_args()

    ray.init(options.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    # An earlier run's processes have ended by now, so its output is final.
    output = options.output if "://" in options.output else str(Path(options.output).resolve())
    everything = sources(options.videos)
    before = done(output)
    left = [{"source": source} for source in everything if source not in before]
    print(f"{len(everything)} videos, {len(before)} of them done before", flush=True)
    if not left:
        return
    # onnxruntime uses all cores by itself.
    workers = options.workers or sum(node["Alive"] for node in ray.nodes())
    started = time.perf_counter()
    rows = ray.data.from_items(left, override_num_blocks=-(-len(left) // options.at_once))
    rows = rows.map_batches(
        Classify,
        fn_constructor_args=(
            os.path.abspath(options.network),
            options.top,
            {"frames": options.frames, "fps": options.fps},
        ),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(left))),
        num_cpus=1,
        scheduling_strategy="SPREAD",
    )
    # Writing does not wait for a core: results are kept while the workers continue.
    rows.write_parquet(output, ray_remote_args={"num_cpus": 0})
    seconds = time.perf_counter() - started
    print(f"{len(left)} videos in {seconds:.1f} s, {len(left) / seconds:.1f} a second, by {workers} workers")


if __name__ == "__main__":
    main()
