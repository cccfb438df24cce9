"""The audit report: one HTML file that shows what was found, works offline and can be mailed.

`Material` is what a report is made of; `write_report` makes the file. Neither needs a run, so a report can also be made of
findings that came from elsewhere. `explain` and `write_explanation` do the same for a trace: a prediction beside the training examples
that are held responsible for it; `write_comparison` for choices of training examples beside random ones; `write_deletion` for examples
that were forgotten.
"""

from imprint.reporting.comparison_page import write_comparison
from imprint.reporting.deletion_page import write_deletion
from imprint.reporting.explanation import Explanation, explain
from imprint.reporting.explanation_page import write_explanation
from imprint.reporting.material import Comparison, Material
from imprint.reporting.report import write_report

__all__ = [
    "Comparison",
    "Explanation",
    "Material",
    "explain",
    "write_comparison",
    "write_deletion",
    "write_explanation",
    "write_report",
]
