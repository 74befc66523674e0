"""Layers of a model that do something else for a while, and then what they did before."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

Forward = Callable[..., object]


@contextmanager
def changed(changes: Iterable[tuple[nn.Module, Callable[[Forward], Forward]]]) -> Iterator[None]:
    """Change what modules do, for the calls inside; whatever happens, they are as before afterwards.

    Args:
        changes: modules, and what makes their new forward of the one that they have.
    """
    before = []
    try:
        for module, change in changes:
            before.append((module, module.__dict__.get("forward")))
            module.forward = change(module.forward)
        yield
    finally:
        for module, forward in reversed(before):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
