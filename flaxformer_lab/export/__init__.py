"""A trained model as one file that needs neither the run's folder nor, as StableHLO, the lab."""
