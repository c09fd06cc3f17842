"""Write the results of the sweep as tables in `docs/coverage.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HEAD = """# Coverage: every backbone, inflated and verified

Made by `python -m tools.sweep --table` from the results of `make sweep`; do not edit. Each network has seeded random
weights with which every layer matters, is inflated with its default recipe, and is compared with its 2D network on two
replicated clips of noise, with two frames each or as few as the recipe allows.

- *run*: the 2D kernels that the network convolves with, functions included, as PyTorch's dispatcher counts them;
  *became 3D*: those of them that are 3D kernels now.
- *inlined*: calls of modules that are no modules of the 3D network's tree: their code is part of the calling module's.
- *attentions*: how many of the softmax attentions over tokens can see other frames. By default, they attend within a
  frame; `--recipe joint`, or a rule such as `-t '*.attn=all'`, extends them. `inspect` says why one can't be extended.
- *folds*: how often a clip is converted to frames, for operations without a 3D counterpart (attention, linear heads).
- *float64*, *float32*: the relative error max |Δ| / max |reference|. Networks marked † compute in float32 whatever the
  type of their weights; their tolerance is 1e-5 in both. If the error in float32 is large, the untrained network
  magnifies rounding, and the 2D network is as far from its own float64 result. An error of exactly 0 in float64 means
  that the network rounds to float32 on the way.
- *size*: height and width in pixels, the smallest that the network accepts of those tried. Networks marked ‡ are large
  and were built with the given blocks instead of all of theirs (`--whole-below`).
- *seconds*: on one core, with another network on the other.
"""

JOINT = """## Attention over all frames

The recipe `joint` ([tools/joint.py](../tools/joint.py)), in which each attention sees the tokens of all frames and
spatial convolutions have three taps. Names of torchvision and timm whose networks have the same class, and attention
modules with the same classes and flags, are of one form, which the smallest network stands for, with few blocks.
Weights, clips and float64 as above.

- *names*: how many the network stands for. *all frames*: how many of its attentions see all frames; the others say why
  they stay within one. Networks without an error in float64 accept float32 only; those with one above 1e-12 compute
  in float32 themselves.
"""
OUTSIDE = """## Networks of other libraries

Networks of transformers, MONAI, segmentation-models-pytorch (smp) and torchxrayvision, with few and narrow layers if
their configuration allows it ([tools/outside.py](../tools/outside.py)), passed to `i3dconvert.inflate` as modules.
Weights, clips and columns as above, with the recipe `uniform`. *volumetric* says whether they are also equal in float64
with depth treated like height and width, and which rules that needs, as the error without them says. For MONAI,
*spatial_dims=3* says whether the weights inflated with `volumetric` load into the same class for volumes with
`strict=True`, and whether that computes the same as the inflated network (in float64).
"""
MORE = """## More networks of other libraries

The first network of each of pytorchcv's families of image networks, and networks of vit-pytorch, efficientnet_pytorch,
ultralytics, and smp's `Unet` with an encoder of each family ([tools/others.py](../tools/others.py)), with the recipe
`uniform`.

- *run*: the 2D kernels that the network convolves with, functions included, as PyTorch's dispatcher counts them;
  *became 3D*: those of them that are 3D kernels now. *stay 2D*: the others, with the reason.
- Networks without an error in float64 accept float32 only.
"""
AGAIN = """## Each family again

One small network or more of each family of torchvision and timm, verified by a later version than the tables above.
*calls*: the calls of modules in the 2D network; *inlined*: those that are no modules of the 3D network's tree.
"""
COUNTED = """## Names counted

Names of torchvision and timm, inflated by a later version than the tables above, without verifying them
(`python -m tools.sweep --counts '*'`). The table has the networks of which a convolution stays 2D or a call of a module
is *inlined*, so that the module is none of the 3D network's tree.
"""
SOURCES = {
    OUTSIDE: ("transformers", "monai", "smp", "torchxrayvision"),
    MORE: ("pytorchcv", "vit-pytorch", "efficientnet_pytorch", "ultralytics", "encoders"),
}
"""The sections of other libraries' networks, and their libraries."""


def write_table(rows: list[Row], counts: list[Row], joint: list[Row], path: Path) -> None:
    """Write the summary, the families, and a line for each network; sections without new results stay.

    `counts` has what `--counts` found in each network, `joint` the results with that recipe.
    """
    counts = [row for row in counts if "attentions" in row]
    attentions = {row["name"]: {key: row[key] for key in ("attentions", "can attend")} for row in counts}
    rows = [row | attentions.get(row["name"], {}) for row in rows if row["init"] == "center"]
    rows = sorted(rows, key=lambda row: ("/" in row["name"], row["name"]))
    libraries = {source for sources in SOURCES.values() for source in sources}
    inside = [row for row in rows if row["name"].partition("/")[0] not in libraries]
    path.parent.mkdir(exist_ok=True)
    titles = [section.partition("\n")[0] for section in (AGAIN, COUNTED, JOINT, *SOURCES)]
    first, again, counted, with_joint, *sections = _split(path.read_text(), titles)
    if counts:
        counted = "\n".join([COUNTED, *_counted(counts)])
    if joint:
        with_joint = "\n".join([JOINT, *_joint(joint)])
    summary = [_equal("torchvision", [row for row in inside if "/" not in row["name"]])]
    summary += [_equal("timm", [row for row in inside if "/" in row["name"]])]
    whole = sum(not row["inlined"] for row in inside if row["passed"])
    summary += [f"- **tree**: {whole} of {sum(row['passed'] for row in inside)} have no inlined call."]
    if len(inside) >= first.count("\n| timm/"):
        summary += [f"- **attentions**: {_attentions(*inside)} can see other frames.", ""]
        first, again = "\n".join([HEAD, *summary, *_families(inside), *_networks(inside)]) + "\n\n", ""
    elif inside:
        again = "\n".join([AGAIN, *summary, "", *_outside(inside)])
    for index, (section, sources) in enumerate(SOURCES.items()):
        groups = {source: [row for row in rows if row["name"].startswith(f"{source}/")] for source in sources}
        if found := [row for mine in groups.values() for row in mine]:
            summary = [*(_equal(source, mine) for source, mine in groups.items() if mine), ""]
            sections[index] = "\n".join([section, *summary, *_outside(found, with_volumes=section == OUTSIDE)])
    path.write_text("\n\n".join(part.strip() for part in (first, again, counted, with_joint, *sections) if part) + "\n")


def _split(text: str, titles: list[str]) -> list[str]:
    """Return the text before the first title, and the section of each title; empty for one that is not there."""
    places = [text.find(f"{title}\n") for title in titles]
    ends = sorted([place for place in places if place >= 0] + [len(text)])
    sections = [text[place : next(end for end in ends if end > place)] if place >= 0 else "" for place in places]
    return [text[: ends[0]], *sections]


def _equal(source: str, rows: list[Row]) -> str:
    passed = [row for row in rows if row["passed"]]
    strict = [row for row in passed if not row["computes_in_float32"]]
    worst = {dtype: max((row.get(dtype, 0.0) for row in strict), default=0.0) for dtype in ("float64", "float32")}
    run, lifted = (sum(row.get(key, 0) for row in passed) for key in ("run", "became 3D"))
    became = f"{lifted:,} of {run:,} convolutions became 3D; " if run else ""
    return (
        f"- **{source}**: {len(passed)} of {len(rows)} equal; {became}worst error {worst['float64']:.1e} in float64 "
        f"and {worst['float32']:.1e} in float32; {len(passed) - len(strict)} compute in float32 themselves (†)."
    )


def _families(rows: list[Row]) -> Iterator[str]:
    families: dict[str, list[Row]] = {}
    for row in rows:
        if "family" in row:
            families.setdefault(row["family"], []).append(row)
    yield from ("## Families", "")
    yield from _table(("family", "networks", "equal", "run", "became 3D", "share", "attentions"))
    for family, mine in sorted(families.items()):
        found, lifted = (sum(row[key] for row in mine) for key in ("run", "became 3D"))
        share = f"{lifted / found:.1%}" if found else "–"
        yield _line(family, len(mine), sum(row["passed"] for row in mine), found, lifted, share, _attentions(*mine))
    yield ""


def _networks(rows: list[Row]) -> Iterator[str]:
    yield from ("## Networks", "")
    counted = ("run", "became 3D", "attentions", "folds", "inlined")
    columns = ("name", "family", "size", *counted, "float64", "float32", "seconds")
    yield from _table(columns)
    for row in rows:
        if not row["passed"]:
            yield _line(row["name"], row.get("family", ""), f"not equal: {row['reason']}", *[""] * 8)
            continue
        blocks = "".join(f" ({key} {value})" for key, value in row["blocks"].items())
        name = row["name"] + (f" ‡{blocks}" if blocks else "")
        float64 = f"{row['float64']:.1e}{' †' if row['computes_in_float32'] else ''}"
        numbers = (row["size"], row["run"], row["became 3D"], _attentions(row), row["folds"], len(row["inlined"]))
        yield _line(name, row["family"], *numbers, float64, f"{row['float32']:.1e}", row["seconds"])


def _attentions(*rows: Row) -> str:
    found, can = (sum(row.get(key, 0) for row in rows) for key in ("attentions", "can attend"))
    return f"{can} of {found}" if found else "–" if all("attentions" in row for row in rows) else ""


def _counted(rows: list[Row]) -> Iterator[str]:
    rows = sorted(rows, key=lambda row: ("/" in row["name"], row["name"]))
    run, lifted = (sum(row[key] for row in rows) for key in ("run", "became 3D"))
    whole = sum(not row["inlined"] for row in rows)
    yield f"- **convolutions**: {lifted:,} of {run:,} became 3D, in {len(rows):,} networks."
    yield f"- **tree**: {whole:,} of {len(rows):,} networks have no inlined call."
    yield f"- **attentions**: {_attentions(*rows)} can see other frames."
    yield ""
    yield from _table(("name", "run", "became 3D", "calls", "inlined", "stay 2D"))
    for row in rows:
        if row["kept"] or row["inlined"]:
            why = "; ".join(dict.fromkeys(reason for _, reason in row["kept"]))
            yield _line(row["name"], *(_number(row, key) for key in ("run", "became 3D", "calls", "inlined")), why)


def _joint(rows: list[Row]) -> Iterator[str]:
    rows = sorted((row for row in rows if row.get("attentions", 1)), key=lambda row: ("/" in row["name"], row["name"]))
    passed = [row for row in rows if row["passed"]]
    names = sum(len(row["names"]) for row in rows)
    found, lifted = (sum(row[key] for row in passed) for key in ("attentions", "all frames"))
    worst = max((row.get("float64", 0.0) for row in passed), default=0.0)
    yield f"{len(passed)} of {len(rows)} networks equal, which stand for {names} names; {lifted} of {found} attentions"
    yield f"see all frames; worst error {worst:.1e}."
    yield ""
    yield from _table(("name", "class", "names", "size", "attentions", "all frames", "float64", "stay within a frame"))
    for row in rows:
        if not row["passed"]:
            yield _line(row["name"], f"not equal: {row['reason']}", *[""] * 6)
            continue
        numbers = (row["class"], len(row["names"]), row["size"], row["attentions"], row["all frames"])
        why = "; ".join(f"{times}: {reason}" for reason, times in row["refusals"].items())
        yield _line(row["name"], *numbers, _number(row, "float64"), why)


def _outside(rows: list[Row], with_volumes: bool = False) -> Iterator[str]:
    numbers = ("size", "run", "became 3D", "folds", "calls", "inlined", "float64", "float32")
    volumes = ("volumetric", "spatial_dims=3") if with_volumes else ()
    yield from _table(("name", *numbers, *volumes, "stay 2D"))
    for row in rows:
        if not row["passed"]:
            yield _line(row["name"], f"not equal: {row['reason']}", *[""] * (len(numbers) + len(volumes)))
            continue
        kept = "; ".join(f"{name}: {reason}" for name, reason in row["kept"][:2])
        more = f" and {len(row['kept']) - 2} more" if len(row["kept"]) > 2 else ""
        cells = (_number(row, key) for key in numbers)
        in_volumes = (row["volumetric"], row.get("3d class", "")) if with_volumes else ()
        yield _line(row["name"], *cells, *in_volumes, kept + more)


def _number(row: Row, key: str) -> str:
    """Return a number of a row as text: of a list its length, of an error few digits, "–" for one that is absent."""
    value = row.get(key, "–")
    return f"{value:.1e}" if isinstance(value, float) else str(len(value) if isinstance(value, list) else value)


def _table(columns: Iterable[str]) -> Iterator[str]:
    columns = list(columns)
    yield _line(*columns)
    yield _line(*["---"] * len(columns))


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
