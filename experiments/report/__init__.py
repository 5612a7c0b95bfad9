"""The report of an experiment, from its ledger alone; `document` says what is in it."""

from experiments.report.document import compose, results, table, write

__all__ = ["compose", "results", "table", "write"]
