"""Studies: data × models × methods × metrics from a recipe, resumable, in one folder a run."""
