"""Reports: the records that training keeps of a run, charts of them, pages that compare runs and models' answers.

Reads a run's files and changes none. Warnings during training are in `kiara.training.advice`.
"""

from kiara.report.charts import plot_run
from kiara.report.comparison import check_page, write_comparison
from kiara.report.page import write_page
from kiara.report.records import METRICS_FILE, SAMPLES_FILE, read_metrics

__all__ = ["METRICS_FILE", "SAMPLES_FILE", "check_page", "plot_run", "read_metrics", "write_comparison", "write_page"]
