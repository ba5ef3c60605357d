"""A run on disk: its cells, records and schema, and the tables that readers make of it."""

from sipp_bench.store.folder import Run, Store, load_run

__all__ = ["Run", "Store", "load_run"]
