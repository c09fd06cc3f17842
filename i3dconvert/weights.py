"""2D weights: reading them from files, fitting them to a network, drawing random ones, naming them by a hash."""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from i3dconvert.errors import I3DError, I3DWarning, WeightsError, first_line
from i3dconvert.files import MOST_TEXT, check_input, check_text, check_unpacked, release

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pyth", ".json")
"""Suffixes of files with weights."""
_NESTS = ("state_dict", "model", "model_state", "model_state_dict", "state_dict_ema", "model_ema", "ema", "teacher")
"""The first that is there is taken."""


def read_state(path: Path) -> State:
    """The state dict in a `.safetensors`, `.pth` or `.pt` file, memory-mapped where the format allows.

    Of a checkpoint in several safetensors files, `path` is the index, `model.safetensors.index.json`.

    A dict nested under `state_dict`, `model` or the like is found; an average (EMA) beside it is left, which an
    `I3DWarning` says. No code in the file is run. Raises `WeightsError`.
    """
    check_input(path, WeightsError, "a .pth, .pt or .safetensors file")
    document = _READERS.get(path.suffix, read_pickle)(path)
    state = tensors_in(document, path)
    if not state:
        raise WeightsError(f"{path} holds no state dict: expected tensors by name, bare or under {', '.join(_NESTS)}")
    if beside := _average_beside(document):
        warnings.warn(
            f"{path} also holds an average of the weights (EMA) under {beside!r}; the others were taken. To take the "
            f"average, save it alone: torch.save(torch.load({path.name!r})[{beside!r}], 'ema.pth')",
            I3DWarning,
            stacklevel=2,
        )
    return state


def read_safetensors(path: Path, error: type[I3DError], what: str) -> tuple[Mapping[str, str], State]:
    """The metadata and the tensors, memory-mapped, of a safetensors file; raises `error` for what is not `what`."""
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
    """The tensors that a Hugging Face index names, from files beside it."""
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
        raise WeightsError(f"{index} names {missing}, which is not there")
    state = {key: tensor for file in files for key, tensor in _read_safetensors(index.parent / file).items()}
    if lost := sorted(set(shards) - set(state)):
        raise WeightsError(f"{index} names {_some('missing', lost)} that its files do not hold")
    return {key: state[key] for key in shards}


def read_pickle(path: Path) -> Any:
    """What is in a `.pth` file, memory-mapped, without running code in it; raises `WeightsError`."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise WeightsError(f"{path} is empty")
    if start.startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights: what was downloaded is an answer of the server's")
    check_bounds(path)
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with torch.serialization.safe_globals(_inert_in(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError:
                return torch.load(path, **options)  # files older than torch 1.6 can't be mapped
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        called = found[1] if found else _first_global(path)
        reason = f"it wants to call {called}" if called else "it is no pickle of tensors"
        raise WeightsError(
            f"{path} can't be read as weights alone: {reason}; nothing in it was run. "
            "Save its state dict as .safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - a broken stream makes the unpickler raise whatever it comes upon
        reason = first_line(error)
        raise WeightsError(f"{path} is not a readable PyTorch file: {reason}") from None


class Inert:
    """Stands for an object of a trainer's that lies beside the weights: nothing of it is built, nothing is run."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Whatever it is given."""
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
"""Whose objects lie in checkpoints beside the weights, by the beginnings of their names."""


def _inert_in(path: Path) -> list[Any]:
    """What stands for trainers' objects in a file; others are refused as they are come upon."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - no archive of torch's, or a broken one: reading it says so
        return []
    return [(Inert, name) for name in names if name.startswith(_TRAINERS)]


def check_bounds(path: Path) -> None:
    """Raise `WeightsError` where the records of a PyTorch file, or the names in it, would fill memory."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # as torch tells
    names = _names_in_archive(path) if is_archive else _names_without_archive(path)
    if b"bytearray" in names:  # which the unpickler makes as long as the file says
        raise WeightsError(f"{path} can't be read as weights alone: it wants memory for bytes that it does not hold")


def _names_in_archive(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            pickles = [record for record in records if record.filename.endswith("data.pkl")]
            check_unpacked(path, sum(record.file_size for record in records), WeightsError)
            check_text(sum(record.file_size for record in pickles), str(path), WeightsError)
            return b"".join(archive.read(record) for record in pickles)
    except I3DError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken archive makes zipfile raise whatever it comes upon
        raise WeightsError(f"{path} is not a readable PyTorch file: {first_line(error)}") from None


def _names_without_archive(path: Path) -> bytes:
    """The pickles that a file from before torch 1.6, or a bare pickle, starts with; its tensors stand behind them."""
    with suppress(ValueError, IndexError, EOFError, OverflowError, MemoryError), path.open("rb") as file:
        for _ in range(_PICKLES):
            for _, _, place in pickletools.genops(file):
                check_text(place or 0, str(path), WeightsError)
    with path.open("rb") as file:
        return file.read(MOST_TEXT)


_PICKLES = 5
"""Magic number, protocol, system, state dict, keys of its tensors."""


def tensors_in(document: Any, path: Path) -> State:
    """The tensors by name of what was read from `path`; raises `WeightsError` for those that it does not hold."""
    found = nested(document)
    state = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{path} holds {key} as a sparse, quantised or empty tensor; save it as a plain one")
    if path.suffix not in _READERS:  # of which a tensor may be wider than its memory
        check_unpacked(path, sum(tensor.nbytes for tensor in state.values()), WeightsError)
    return state


def _first_global(path: Path) -> str | None:
    """What a bare pickle calls first, by its opcodes."""
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
    """The mapping that a training framework put under one of its usual keys."""
    if not isinstance(document, Mapping):
        return {}
    found = next((document[nest] for nest in _NESTS if isinstance(document.get(nest), Mapping)), None)
    return document if found is None else nested(found)


def _average_beside(document: Any) -> str:
    """The key of an average of the weights that `nested` leaves, if there is one."""
    if not isinstance(document, Mapping):
        return ""
    taken = next((nest for nest in _NESTS if isinstance(document.get(nest), Mapping)), None)
    averages = (key for key, value in document.items() if "ema" in str(key).lower() and isinstance(value, Mapping))
    return next((str(key) for key in averages if taken not in (None, key)), "")


class NoInit(TorchFunctionMode):
    """While active, networks are built with the values of their parameters left open: the checkpoint brings them.

    Memory that is not written to is not used either, so that building costs time and space for the buffers alone.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and name.endswith("_") and not name.endswith("__"):
            return target.requires_grad_(*args[1:], **kwargs) if name == "requires_grad_" else target
        return func(*args, **kwargs)


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give `model` the tensors of `state` (not copied). Raises `WeightsError` saying which keys do not fit."""
    expected = model.state_dict()
    if odd := [key for key, tensor in state.items() if key in expected and _is_odd(tensor, expected[key])]:
        kinds = [f"{key} in {str(state[key].dtype).removeprefix('torch.')}" for key in odd]
        raise WeightsError(f"{where} does not hold floating-point weights: {_some('such', kinds)}")
    try:
        outcome = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError:
        wrong = [k for k, v in state.items() if k in expected and v.shape != expected[k].shape]
        shapes = [f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong]
        raise WeightsError(f"{where} does not fit the network: {_some('mis-shaped', shapes)}") from None
    problems = [
        _some(kind, keys)
        for kind, keys in (("missing", outcome.missing_keys), ("unexpected", outcome.unexpected_keys))
        if keys
    ]
    if problems:
        raise WeightsError(f"{where} does not fit the network: {'; '.join(problems)}")


def _is_odd(tensor: Tensor, expected: Tensor) -> bool:
    """Whether integers, complex numbers or less than 16 bits stand where a floating-point weight belongs."""
    return expected.is_floating_point() and (not tensor.is_floating_point() or tensor.element_size() < 2)


def inspect(state: Mapping[str, Tensor], where: str, allow_nonfinite: bool = False, mapped: bool = False) -> str:
    """The SHA-256 of tensors just read; raises `WeightsError` naming the first with a NaN or an infinity in it."""
    total, stream = Digest(), Stream(mapped)
    for key, tensor in state.items():
        total.add(key, tensor)
        if not allow_nonfinite and tensor.is_floating_point() and not _is_finite(tensor):
            raise WeightsError(f"{where} holds NaN or infinite values, first in {key}; --allow-nonfinite takes them")
        stream.passed(tensor)
    return total.hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    """A sum carries NaN and infinities on; one that overflows is looked at more closely."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


class Stream:
    """Tensors used one after the other, whose memory does not pile up where it is mapped from files."""

    _PILE = 2**25

    def __init__(self, mapped: bool) -> None:
        """Not `mapped` are tensors that anyone else may have changed: nothing is given back of them."""
        self._mapped = mapped
        self._tensors: list[Tensor] = []

    def passed(self, tensor: Tensor) -> None:
        """`tensor` was used; it must be as it was read, and may be used again."""
        if not self._mapped:
            return
        self._tensors.append(tensor)
        if sum(passed.nbytes for passed in self._tensors) > self._PILE:
            release([passed.data_ptr() for passed in self._tensors])
            self._tensors.clear()


def _some(kind: str, items: list[str]) -> str:
    count = f"{len(items)} {kind} key{'s' if len(items) != 1 else ''}"
    return f"{count} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"


def classes_in(state: Mapping[str, Tensor], model: nn.Module, classes: int) -> int | None:
    """How many classes `state` was trained for, when the head's count is all that sets it apart from `model`'s."""
    expected = model.state_dict()
    counts = {
        (tensor.shape[0], tuple(tensor.shape[1:]) == tuple(expected[key].shape[1:]), expected[key].shape[0])
        for key, tensor in state.items()
        if key in expected and tensor.dim() and tensor.shape != expected[key].shape
    }
    if len(counts) != 1:
        return None
    ((count, same_otherwise, ours),) = counts
    return count if same_otherwise and ours == classes else None


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    total = Digest()
    for key in sorted(state):
        total.add(key, state[key])
    return total.hexdigest()


class Digest:
    """SHA-256 of a state dict, tensor by tensor; the order in which they are added does not matter."""

    def __init__(self) -> None:
        self._parts: dict[str, hashlib._Hash] = {}

    def open(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> hashlib._Hash:
        """Begin a tensor, whose bytes the hash that is returned has to be updated with."""
        self._parts[key] = hashlib.sha256(f"{key}\0{dtype}\0{shape}\0".encode())
        return self._parts[key]

    def add(self, key: str, tensor: Tensor) -> None:
        """Take one tensor in."""
        self.open(key, tensor.dtype, tuple(tensor.shape)).update(raw(tensor))

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(b"".join(self._parts[key].digest() for key in sorted(self._parts))).hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def randomise(model: nn.Module, seed: int, size: tuple[int, int, int]) -> None:
    """Fill `model` with seeded random weights under which every layer matters.

    Libraries start heads, last norms and layer scales at zero, which would leave whole branches out of a comparison.
    Here weights are scaled by their fan-in (He et al., arXiv:1502.01852), scales lie around one, and BatchNorm
    statistics are those of noise of the shape `size` (C, H, W), so that activations stay of order one at any depth.
    The same seed gives the same weights; the statistics are computed in float64 to survive a change of machine.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, seed))
        noise = torch.randn(4, *size, generator=_generator("calibration", seed), dtype=torch.float64)
        _calibrate(model, noise, seed)


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))


def _draw(name: str, parameter: Tensor, seed: int) -> Tensor:
    generator = _generator(name, seed)
    one_filter = name.endswith("weight") and parameter.dim() > 2 and parameter.shape[0] == 1
    vector = parameter.numel() == max((*parameter.shape, 1)) and not one_filter
    if vector and name.endswith("bias"):
        return torch.randn(parameter.shape, generator=generator) * 0.5
    if vector:
        return torch.rand(parameter.shape, generator=generator) + 0.5
    deviation = 0.5 if parameter.shape[0] == 1 else (2 / parameter[0].numel()) ** 0.5
    return torch.randn(parameter.shape, generator=generator) * deviation


def _calibrate(model: nn.Module, noise: Tensor, seed: int) -> None:
    """Set each BatchNorm's statistics from what reaches it, in one pass.

    The variance is the second moment around a mean drawn at random, and a quarter of what it is over all channels.
    Around the true mean, which behind many layers of blurred noise is nearly all there is, or in a channel whose
    weights happen to cancel, every layer would blow up the rounding errors of the one before it.
    """

    def measure(name: str, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        channels_last = inputs[0].transpose(1, -1).flatten(0, -2)
        scale = channels_last.square().mean(0).sqrt()
        shift = torch.randn(scale.shape, generator=_generator(f"{name}.running_mean", seed), dtype=scale.dtype)
        norm.running_mean.copy_(0.1 * scale * shift)
        norm.running_var.copy_((channels_last - norm.running_mean).square().mean(0) + scale.square().mean() / 4)

    hooks = [
        norm.register_forward_pre_hook(partial(measure, name))
        for name, norm in model.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
    ]
    if hooks:
        dtype = next(model.parameters()).dtype
        mode = model.training
        model.double()(noise)
        model.to(dtype).train().train(mode)  # what it keeps for evaluations (LeViT its biases) is of the other dtype
    for hook in hooks:
        hook.remove()
