"""Reports on runs: the records that training keeps, charts of them, and a page that compares several.

Reads a run's files and changes none. Warnings during training are in `kiara.training.advice`.
"""

from kiara.report.charts import plot_run
from kiara.report.page import write_page
from kiara.report.records import METRICS_FILE, SAMPLES_FILE, read_metrics

__all__ = ["METRICS_FILE", "SAMPLES_FILE", "plot_run", "read_metrics", "write_page"]
