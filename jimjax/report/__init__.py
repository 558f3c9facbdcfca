"""A run as one self-contained HTML page; importing this is cheap, figures load when drawn."""

from jimjax.report.page import ReportData, read_history, render, write_report

__all__ = ["ReportData", "read_history", "render", "write_report"]
