"""Everything the library raises on purpose. The messages are written for the user of the command line as well."""


class I3DError(Exception):
    """The root of all errors that a user can act on."""


class BackboneError(I3DError):
    """No such 2D network, or it can't be built."""


class WeightsError(I3DError):
    """A weight file that can't be read, or that doesn't fit the network."""


class RecipeError(I3DError):
    """A recipe that can't be read, matches nothing, or breaks a join of the network."""


class LiftError(I3DError):
    """The 2D network can't be traced or lifted; the message names the operation and the module."""


class FramesError(I3DError, ValueError):
    """A clip of the wrong shape, or with fewer frames than the recipe's strides need."""


class CheckpointError(I3DError):
    """A file that is no i3dconvert checkpoint, or a damaged one; or a network that no checkpoint can keep."""


class VerificationError(I3DError):
    """A check could not be carried out (one that ran and failed is a report, not an error)."""


class MediaError(I3DError):
    """Pictures or a video that can't be read."""


class StreamError(I3DError, ValueError):
    """A network that can't be computed step by step, or a step that does not fit its stream."""


class ExportError(I3DError):
    """The export failed, or what it wrote does not agree with torch."""


class BenchmarkError(I3DError):
    """A case could not be measured."""


class DeviceError(I3DError):
    """There is no such device to compute on."""


class OutputError(I3DError):
    """The place to write to exists already or can't be written."""


class LayoutError(I3DError):
    """No such framework, or its networks are not what a checkpoint holds."""


class ClassesError(I3DError):
    """Names of classes that can't be read, or not as many as the network has classes."""


class I3DWarning(UserWarning):
    """Something that a user should know of a network that was made."""


def first_line(error: BaseException) -> str:
    """What an error says first; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
