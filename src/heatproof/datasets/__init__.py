"""The sample and region tables, splits, and where data sets come from: nothing after the tables knows the data set."""
