"""Classes of clips, of whole videos, of folders of videos, and of live video.

Imports `streaming`, `export`, `inflation`, `checkpoint`, and the rooms below them.
"""

from i3dconvert.classification.clips import Classifier, Moment, classify, load_classifier, mean_of, to_dict, windows
from i3dconvert.classification.folder import Done, classify_folder
from i3dconvert.classification.live import Live, classify_live, load_live

__all__ = ["Classifier", "Done", "Live", "Moment", "classify", "classify_folder", "classify_live", "load_classifier"]
__all__ += ["load_live", "mean_of", "to_dict", "windows"]
