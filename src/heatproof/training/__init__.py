"""Fine-tuning a classifier on a data set, and measuring how well it classifies."""
