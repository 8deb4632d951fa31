"""What ``smet-bench`` measures, one module a benchmark: both arms in one run, figures and bars in one JSON file."""
