"""Read weights from files, without running code in them."""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from i3dconvert.errors import I3DError, I3DWarning, WeightsError, first_line
from i3dconvert.files import MOST_TEXT, check_input, check_text, check_unpacked
from i3dconvert.weights.fitting import some

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pyth", ".json")
"""Suffixes of files with weights."""
_NESTS = ("state_dict", "model", "model_state", "model_state_dict", "state_dict_ema", "model_ema", "ema", "teacher")
"""Keys under which trainers store the state dict; the first one found is used. Others count if no other mapping holds
tensors."""


def read_state(path: Path) -> State:
    """Return the state dict in a `.safetensors`, `.pth` or `.pt` file, memory-mapped where the format allows.

    For a checkpoint in several safetensors files, `path` is the index, `model.safetensors.index.json`.

    A dict nested under `state_dict`, `model` or the like is found, or the only one with tensors; an average (EMA)
    beside it is ignored, with an `I3DWarning`. No code in the file is run. Raises `WeightsError`.
    """
    check_input(path, WeightsError, "a .pth, .pt or .safetensors file")
    document = _READERS.get(path.suffix, read_pickle)(path)
    state = tensors_in(document, path)
    if not state and len(several := _holding(document)) > 1:
        raise WeightsError(
            f"{path} holds several state dicts: {', '.join(map(str, several[:5]))}; save the network's alone: "
            f"torch.save(torch.load({path.name!r})[{several[0]!r}], 'weights.pth')"
        )
    if not state:
        raise WeightsError(f"{path} holds no state dict: expected tensors by name, bare or under {', '.join(_NESTS)}")
    if beside := _average_beside(document):
        warnings.warn(
            f"{path} also holds an average of the weights (EMA) under {beside!r}; the others are used. To use the "
            f"average, save it alone: torch.save(torch.load({path.name!r})[{beside!r}], 'ema.pth')",
            I3DWarning,
            stacklevel=2,
        )
    return state


def read_safetensors(path: Path, error: type[I3DError], what: str) -> tuple[Mapping[str, str], State]:
    """Return the metadata and the memory-mapped tensors of a safetensors file; raises `error` if it is not `what`."""
    try:
        with path.open("rb") as bare:
            header = int.from_bytes(bare.read(8), "little")
        if header <= path.stat().st_size:
            check_text(header, str(path), error)
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return file.metadata() or {}, state
    except (SafetensorError, OSError) as reason:
        raise error(f"{path} is not a readable {what}: {reason}") from None


def _read_safetensors(path: Path) -> State:
    return read_safetensors(path, WeightsError, "safetensors file")[1]


def _read_shards(index: Path) -> Any:
    """Return the tensors that a Hugging Face index lists, from the files beside it."""
    check_text(index.stat().st_size, str(index), WeightsError)
    try:
        shards = json.loads(index.read_bytes())["weight_map"]
        files = sorted({str(file) for file in shards.values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise WeightsError(f"{index} is not a readable safetensors index: {type(error).__name__}: {error}") from None
    outside = next((file for file in files if Path(file).name != file), None)
    if outside is not None:
        raise WeightsError(f"{index} names {outside!r}, which is not a file beside it")
    missing = next((file for file in files if not (index.parent / file).is_file()), None)
    if missing is not None:
        raise WeightsError(f"{index} names {missing}, which does not exist")
    state = {key: tensor for file in files for key, tensor in _read_safetensors(index.parent / file).items()}
    if lost := sorted(set(shards) - set(state)):
        raise WeightsError(f"{index} names {some('missing', lost)} that its files do not contain")
    return {key: state[key] for key in shards}


def read_pickle(path: Path) -> Any:
    """Return the content of a `.pth` file, memory-mapped, without running its code; raises `WeightsError`."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise WeightsError(f"{path} is empty")
    if start.startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights: the server sent it instead of the file")
    check_bounds(path)
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with torch.serialization.safe_globals(_inert_in(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError:
                return torch.load(path, **options)  # files older than torch 1.6 can't be mapped
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        called = found[1] if found else _first_global(path)
        reason = f"it would call {called}" if called else "it is not a pickle of tensors"
        raise WeightsError(
            f"{path} can't be read as weights alone: {reason}; nothing in it was run. "
            "Save its state dict as .safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - a broken stream makes the unpickler raise any exception
        reason = first_line(error)
        raise WeightsError(f"{path} is not a readable PyTorch file: {reason}") from None


class Inert:
    """Replaces a trainer's object beside the weights, so that it is not built and its code does not run."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Accept and ignore all arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


_TRAINERS = (
    *("argparse.Namespace", "pathlib.", "numpy.", "lightning.", "lightning_fabric.", "pytorch_lightning."),
    *("mmengine.", "mmcv.", "mmpretrain.", "omegaconf.", "timm.", "torchmetrics.", "yacs.", "easydict."),
)
"""Prefixes of the modules whose objects trainers store beside the weights."""


def _inert_in(path: Path) -> list[Any]:
    """Return the replacements of the trainers' objects in a file; other objects are refused when they are read."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - not an archive of torch's, or a broken one: reading it reports that
        return []
    return [(Inert, name) for name in names if name.startswith(_TRAINERS)]


def check_bounds(path: Path) -> None:
    """Raise `WeightsError` if the records of a PyTorch file, or its names, would fill memory."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # as in torch
    names = _names_in_archive(path) if is_archive else _names_without_archive(path)
    if b"bytearray" in names:  # which the unpickler allocates at any length that the file gives
        raise WeightsError(f"{path} can't be read as weights alone: it allocates memory for bytes it does not hold")


def _names_in_archive(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            pickles = [record for record in records if record.filename.endswith("data.pkl")]
            if any(record.filename.endswith("/constants.pkl") for record in records):
                raise WeightsError(
                    f"{path} is a TorchScript program, not weights; save its state dict: "
                    f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
                )
            check_unpacked(path, sum(record.file_size for record in records), WeightsError)
            check_text(sum(record.file_size for record in pickles), str(path), WeightsError)
            return b"".join(archive.read(record) for record in pickles)
    except I3DError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken archive makes zipfile raise any exception
        raise WeightsError(f"{path} is not a readable PyTorch file: {first_line(error)}") from None


def _names_without_archive(path: Path) -> bytes:
    """Return the pickles at the start of a file from before torch 1.6, or of a bare pickle; the tensors follow them."""
    with suppress(ValueError, IndexError, EOFError, OverflowError, MemoryError), path.open("rb") as file:
        for _ in range(_PICKLES):
            for _, _, place in pickletools.genops(file):
                check_text(place or 0, str(path), WeightsError)
    with path.open("rb") as file:
        return file.read(MOST_TEXT)


_PICKLES = 5
"""Their number: magic number, protocol, system, state dict, keys of its tensors."""


def tensors_in(document: Any, path: Path) -> State:
    """Return the tensors, by name, of a document read from `path`; raises `WeightsError` if it holds other values."""
    found = nested(document)
    state = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{path} holds {key} as a sparse, quantised or empty tensor; save it as a plain one")
    if path.suffix not in _READERS:  # a tensor of a pickle may be larger than its memory
        check_unpacked(path, sum(tensor.nbytes for tensor in state.values()), WeightsError)
    return state


def _first_global(path: Path) -> str | None:
    """Return the first name that a bare pickle imports."""
    words: list[str] = []
    with suppress(Exception), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(words[-2:])
            if isinstance(argument, str):
                words.append(argument)
    return None


_READERS: dict[str, Callable[[Path], Any]] = {".safetensors": _read_safetensors, ".json": _read_shards}


def nested(document: Any) -> Mapping[Any, Any]:
    """Return the mapping under one of the usual keys of training frameworks, or the only one that holds tensors."""
    for _ in range(_DEEPEST):
        key = _nest(document)
        if key is None:
            break
        document = document[key]
    return document if isinstance(document, Mapping) else {}


_DEEPEST = 4
"""The most mappings inside each other."""


def _nest(document: Any) -> Any:
    """Return the key of the mapping that holds the network's tensors; None if `document` itself does."""
    if not isinstance(document, Mapping):
        return None
    usual = next((nest for nest in _NESTS if isinstance(document.get(nest), Mapping)), None)
    if usual is not None:
        return usual
    holding = _holding(document)
    return holding[0] if len(holding) == 1 and _tensors(document[holding[0]]) >= _tensors(document) else None


def _holding(document: Any) -> list[Any]:
    """Return the keys of the mappings that hold tensors; averages count only if there are no others."""
    found = [key for key, value in document.items() if _holds(value)] if isinstance(document, Mapping) else []
    return [key for key in found if not _is_average(key)] or found


def _holds(value: Any) -> bool:
    return isinstance(value, Mapping) and _tensors(value) > 0


def _tensors(mapping: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in mapping.values())


def _is_average(key: Any) -> bool:
    return "ema" in str(key).lower()


def _average_beside(document: Any) -> str:
    """Return the key of averaged weights that `nested` ignores, if any."""
    taken = _nest(document)
    averages = (key for key, value in document.items() if _is_average(key) and isinstance(value, Mapping))
    return next((str(key) for key in averages if taken not in (None, key)), "")
