"""`python -m i3dconvert`."""

import sys

from i3dconvert.cli import main

sys.exit(main())
