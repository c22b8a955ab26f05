"""The report of a run: one self-contained HTML page made from the files of its folder.

`write(run_dir)` is all most people need. Needs matplotlib, which the extra `[train]` brings.
"""

from dessilbi_jax.report.build import render, write, write_figures
from dessilbi_jax.report.comparison import compare, write_comparison

__all__ = ["compare", "render", "write", "write_comparison", "write_figures"]
