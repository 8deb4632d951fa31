"""Reports of runs: charts described once as plain data, drawn by bokeh in a page and by matplotlib in PNGs."""
