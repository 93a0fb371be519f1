"""Whether processes of their own would know what a comparison names."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ..agents import learner
from ..backbones import registry as backbones
from ..data import registry as data
from ..envs import task as tasks
from ..registry import Registry
from .methods import ALL, method
from .plan import CompareConfig

REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (tasks.REGISTRY, backbones.REGISTRY, data.REGISTRY, learner.REGISTRY)
}


def check_workers(config: CompareConfig) -> None:
    """Raise a ValueError if workers would not know something that only this program has registered.

    A worker imports skipgym and, where there is one, the script that was started; what is registered there it knows.
    """
    local = [(kind, name) for kind, name in _named(config) if REGISTRIES[kind].is_local(name)]
    if config.workers == 1 or not local:
        return
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            missing = pool.submit(unknown_here, local).result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"workers: expected a program that {config.workers} workers can import, got one that fails there. Call "
            "compare under `if __name__ == '__main__':`, or pass workers=1."
        ) from error
    if missing:
        raise ValueError(
            f"workers: expected names that every process knows, or 1 worker; got {config.workers} workers and "
            f"{', '.join(f'{kind} {name}' for kind, name in missing)}, registered in this program only. Pass workers=1 "
            f"(--workers 1), or install a package with an entry point {REGISTRIES[missing[0][0]].group}."
        )


def unknown_here(names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return which of these (kind, name) this process does not know."""
    return [(kind, name) for kind, name in names if name not in REGISTRIES[kind].known()]


def _named(config: CompareConfig) -> Iterator[tuple[str, str]]:
    yield "task", config.task
    yield "backbone", config.backbone
    yield "data", config.data
    yield from (("agent", method(name).agent) for name in config.agents if name != ALL)
