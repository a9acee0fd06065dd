"""The numbers of finished runs: read from logs and records, shown as tables, figures, pages. Imports no torch."""
