"""Reports of studies: rows grouped over seeds, as tables, plots, pages, and verdicts on the papers' claims."""
