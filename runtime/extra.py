"""The optional packages, and what to type where they are missing."""

from importlib.util import find_spec


class MissingExtra(ImportError):
    """An optional package is asked for that is not installed."""


def need(*packages: str) -> None:
    """Check that packages of the extra `onnx` are installed, without importing them.

    Raises:
        MissingExtra: If one is missing.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise MissingExtra(
            f"ONNX: expected {', '.join(packages)}, got no {', '.join(missing)}. Install the extra: "
            'pip install "skipgym[onnx]", or in the source directory pip install ".[onnx]".'
        )
