"""metattn-calibrate report: what a controller costs in quality and saves in bytes, measured, as Markdown, plots and JSON."""
