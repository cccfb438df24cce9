"""The audit report: one HTML file that shows what was found, works offline and can be mailed.

`Material` is what a report is made of; `write_report` makes the file. Neither needs a run, so a report can also be made of
findings that came from elsewhere.
"""

from imprint.reporting.material import Comparison, Material
from imprint.reporting.report import write_report

__all__ = ["Comparison", "Material", "write_report"]
