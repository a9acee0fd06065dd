"""The numbers of finished runs: read from logs and records, shown as tables, figures, a page.

logs.py and records.py find and read them, statistics.py has the formulas, names.py what a method
is called; tables.py, figures.py and report.py are commands. Imports no torch, and nothing of runs/.
"""

from dassl.commands import quiet_imports

quiet_imports(__name__)
