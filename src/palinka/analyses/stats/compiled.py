from numba import config

from palinka.errors import compiled_with

# Division by zero gives infinity as in NumPy; checking for it would stop vectorization.
compiled = compiled_with(error_model="numpy")


def threads() -> int:
    """Number of threads for compiled loops: `NUMBA_NUM_THREADS`, or all cores."""
    return int(vars(config)["NUMBA_NUM_THREADS"])
