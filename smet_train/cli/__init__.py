"""Console scripts, one thin module each."""
