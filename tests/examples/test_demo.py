"""The main job on real weights: the demo checks its own answers and stops at a wrong one."""

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parent.parent.parent / "examples" / "demo.py"


def test_demo(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(DEMO), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equals its 2D network") == 2
    for answer in ("tiger cat 0.39", "espresso 0.95", "carphone_pristine.mp4: bow tie"):
        assert answer in done.stdout
    assert (tmp_path / "lite0-i3d.onnx").exists()
