"""How fast networks run: forward passes in several runtimes side by side, and what attention over time costs."""

from i3dconvert.reporting.benchmark.ratios import FORMULA, Ratio, ratios
from i3dconvert.reporting.benchmark.runtimes import Case, Measurement, measure

__all__ = ["FORMULA", "Case", "Measurement", "Ratio", "measure", "ratios"]
