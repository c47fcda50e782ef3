"""Whole networks, built from modules and chosen by the config."""
