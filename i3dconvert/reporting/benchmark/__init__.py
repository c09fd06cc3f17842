"""Measure the speed of networks: forward passes in several runtimes, and the cost of attention over time."""

from i3dconvert.reporting.benchmark.ratios import FORMULA, Ratio, ratios
from i3dconvert.reporting.benchmark.runtimes import Case, Measurement, measure

__all__ = ["FORMULA", "Case", "Measurement", "Ratio", "measure", "ratios"]
