"""Self-contained pages and tables about runs."""
