"""The report of an ablation, from its stored results alone: scores, differences, verdicts, tables and figures."""
