"""`make bench`: every published figure in one run, each beside its reference and its target.

One module per group of figures; coffre.bench.figures._run has their order.
"""

from coffre.bench.figures._run import TARGETS, measure_figures
from coffre.bench.figures._session import FULL, QUICK, FigureOptions, Figures, Scale

__all__ = ["FULL", "QUICK", "TARGETS", "FigureOptions", "Figures", "Scale", "measure_figures"]
