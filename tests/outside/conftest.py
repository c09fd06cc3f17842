"""Networks and trainers of other packages: the extra `outside`."""

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = (
    *("captum", "lightning", "monai", "peft", "pytorch_grad_cam", "segmentation_models_pytorch", "torchao"),
    *("torchxrayvision", "transformers", "deepinv", "dynamic_network_architectures"),
)
collect_ignore_glob = [] if all(map(find_spec, PACKAGES)) else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.outside)
