"""How lightning attention's kernel runs best on GPUs that were measured; benchmarks/tune_lightning.py writes it."""

LAUNCHES = {
    "NVIDIA H200": {"block": 64, "columns": 128, "warps": 8, "stages": 3, "programs": 512},
}
