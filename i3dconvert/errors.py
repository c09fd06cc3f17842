"""The errors that the library raises. Their messages also address users of the command line."""

from collections.abc import Sequence


class I3DError(Exception):
    """The base class of all errors that a user can act on."""


class BackboneError(I3DError):
    """A 2D network that does not exist or can't be built."""


class WeightsError(I3DError):
    """A weight file that can't be read or does not fit the network."""


class RecipeError(I3DError):
    """A recipe that can't be read, matches nothing, or breaks a join of the network."""


class LiftError(I3DError):
    """A 2D network that can't be traced or lifted; the message names the operation and the module."""


class AbsentError(LiftError, AttributeError):
    """An attribute of the 2D network that the 3D one can't have; the message says what to use instead."""


class FramesError(I3DError, ValueError):
    """A clip of the wrong shape, or with fewer frames than the recipe's strides need."""


class CheckpointError(I3DError):
    """A file that is not an i3dconvert checkpoint or is damaged, or a network that a checkpoint can't store."""


class VerificationError(I3DError):
    """A check that could not run. A check that failed is part of the report instead."""


class MediaError(I3DError):
    """A picture or video that can't be read."""


class StreamError(I3DError, ValueError):
    """A network that can't run step by step, or a step that does not fit its stream."""


class ExportError(I3DError):
    """An export that failed or differs from torch."""


class BenchmarkError(I3DError):
    """A case that could not be measured."""


class DeviceError(I3DError):
    """A device that does not exist."""


class OutputError(I3DError):
    """An output that already exists or can't be written."""


class LayoutError(I3DError):
    """A framework that does not exist, or whose networks do not match the checkpoint."""


class ClassesError(I3DError):
    """Class names that can't be read, or whose number differs from the network's classes."""


class I3DWarning(UserWarning):
    """Something that a user should know about a network."""


def listed(items: Sequence[str], most: int = 3) -> str:
    """Return the first items for a message, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
