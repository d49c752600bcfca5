"""Reports: what finished runs and studies say, as a page, its Markdown twin and CSV files. Reads files alone."""
