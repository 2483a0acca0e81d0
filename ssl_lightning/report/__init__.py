"""Reports from results.json: tables, charts, summaries and model cards."""
