"""Where the time of a piece of work goes, by kind; Python's profiler would slow small calls down too much to tell."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn


class Clock:
    """Adds up the time spent in watched calls; a call inside another is taken off the outer one's time.

    Args:
        whole: Kinds of which everything inside counts as themselves.

    Attributes:
        seconds: Of each kind.
    """

    def __init__(self, whole: Iterable[str] = ()):
        self.whole, self.seconds = frozenset(whole), defaultdict[str, float](float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def count(self, kind: str) -> Iterator[None]:
        """Count what happens inside as of a kind."""
        self._enter(kind)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def watch(self, owner: Any, names: Iterable[str], kind: str) -> Iterator[None]:
        """Count all calls of an object's or a class's methods, until the end of the context."""
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(_replaced(owner, name, lambda call: self._counted(call, kind)))
            yield

    @contextmanager
    def watch_modules(self, modules: Iterable[nn.Module], kind: str) -> Iterator[None]:
        """Count all calls of modules, until the end of the context."""
        handles = []
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_: self._enter(kind)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _counted(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.count(kind):
                return call(*args, **kwargs)

        return timed

    def _enter(self, kind: str) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
            kind = self._open[-1] if self._open[-1] in self.whole else kind
        self._open.append(kind)
        self._since = now

    def _leave(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open.pop()] += now - self._since
        self._since = now


@contextmanager
def _replaced(owner: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Put something else in the place of an attribute, and at the end what was there before."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, change(before))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)  # it was inherited
