from functools import partial

from numba import config
from threadpoolctl import threadpool_limits

from palinka.errors import compiled_with

# Division by zero gives infinity as in NumPy; checking for it would stop vectorization.
compiled = compiled_with(error_model="numpy")
# For many small products, where threads of BLAS wait for each other.
one_blas_thread = partial(threadpool_limits, 1, "blas")


def threads() -> int:
    """Number of threads for compiled loops: `NUMBA_NUM_THREADS`, or all cores."""
    return int(vars(config)["NUMBA_NUM_THREADS"])
