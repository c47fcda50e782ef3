"""The small ablation of tests/ablation, whose stores are filled with results that were never trained."""

import runpy
from pathlib import Path

# A file of the folder beside this one, which is no package.
made_up = runpy.run_path(str(Path(__file__).parents[1] / "ablation" / "conftest.py"))
claim, grid, judged_by, result, store = (made_up[name] for name in ("claim", "grid", "judged_by", "result", "store"))
