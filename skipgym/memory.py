"""How this process keeps memory."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt, in glibc's malloc.h."""


def keep_memory() -> bool:
    """Let the process keep memory that it has freed, until it ends; for whole programs, such as our commands.

    Feature maps come and go by the hundred a second, and glibc gives their memory back to the system again and again:
    each page then costs a fault when it is next used. The same comes of MALLOC_TRIM_THRESHOLD_ and
    MALLOC_MMAP_THRESHOLD_ in the environment.

    Returns:
        Whether the C library knows how.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
