"""Remove the prefixes that training wrappers add to the names of a network's tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import islice

from torch import Tensor

from i3dconvert.errors import I3DWarning
from i3dconvert.weights import State

TRAINERS = ("_orig_mod.", "module.")
"""Prefixes of `torch.compile` and `DataParallel`; no network uses them itself."""
PREFIXES = (*TRAINERS, "model.", "backbone.", "encoder_q.", "teacher.")
"""And those of Lightning modules, detectors and self-supervised learners (MoCo, DINO)."""
_DEEPEST = 4
_MOST_PREFIXES = 32
"""The most copies of a network in a file that are looked at."""
_COUNTERS = ("n_averaged",)
"""Buffers that `torch.optim.swa_utils.AveragedModel` adds beside the network."""


def bare(state: State) -> State:
    """Return `state` without the prefixes of `TRAINERS` that all names share."""
    for prefix in TRAINERS * _DEEPEST:
        if state and all(key.startswith(prefix) for key in state):
            state = _within(state, prefix)
    return state


def unwrapped(state: State, wanted: Mapping[str, Tensor], where: str) -> State:
    """Return the part of `state`, without the prefixes (`PREFIXES`, however nested), that has the most names of
    `wanted`.

    Prefixes that `wanted` also has stay. An `I3DWarning` reports what is left out; `where` names the file.
    """
    state = {key: tensor for key, tensor in state.items() if key in wanted or key not in _COUNTERS}
    readings = [*_readings("", state), *((prefix, _within(state, prefix)) for prefix in _own_prefixes(state, wanted))]
    prefix, found = max(readings, key=lambda reading: len(wanted.keys() & reading[1].keys()))
    head = _head_beside(state, prefix, found, wanted)
    if others := [key for key in state if not key.startswith(prefix) and key not in head.values()]:
        warnings.warn(
            f"{where} also holds {others[0][:120]}{_more(len(others) - 1)}; the tensors under {prefix[:120]} were used",
            I3DWarning,
            stacklevel=2,
        )
    return found | {name: state[key] for name, key in head.items()}


def _more(count: int) -> str:
    return f" and {count} more tensor{'s' * (count > 1)}" if count else ""


def _head_beside(state: State, prefix: str, found: State, wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the names of the head's tensors to their names outside the backbone (MMPretrain's `head.fc`).

    The head is the only layer there; numbers for losses and for the preprocessing may be beside it.
    """
    missing = {key.rpartition(".")[2]: key for key in wanted if key not in found}
    owners = {key.rpartition(".")[0] for key in wanted if key not in found}
    layers: dict[str, dict[str, str]] = {}
    for owner, _, leaf in (key.rpartition(".") for key in state if not key.startswith(prefix)):
        layers.setdefault(owner, {})[leaf] = f"{owner}.{leaf}".lstrip(".")
    layers = {owner: keys for owner, keys in layers.items() if "weight" in keys and state[keys["weight"]].dim() > 1}
    head = next(iter(layers.values()), {})
    if not prefix or len(layers) != 1 or len(owners) != 1 or head.keys() != missing.keys():
        return {}
    return {missing[leaf]: key for leaf, key in head.items()}


def _own_prefixes(state: State, wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes that a user's module (`self.network = …`) adds: whatever precedes a known name."""
    known = next((key for key in wanted if key.count(".") > 1), next(iter(wanted), ""))
    found = (key.removesuffix(known) for key in state if known and key.endswith(f".{known}"))
    return list(islice(found, _MOST_PREFIXES))


def _readings(prefix: str, state: State, depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the candidates for a network: `state` itself, then its parts under each nesting of prefixes."""
    yield prefix, state
    for inner in PREFIXES if depth < _DEEPEST else ():
        if part := _within(state, inner):
            yield from _readings(prefix + inner, part, depth + 1)


def _within(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
