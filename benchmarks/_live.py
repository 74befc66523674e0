"""Counting bytes of tensors as they come and go: of real ones, or of PyTorch's fake ones, which have no data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SCALARS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class LiveBytes(TorchDispatchMode):
    """Counts what operators allocate inside of it; what an operator allocates for itself alone is not seen.

    A fake tensor has no value. Where one is asked for, a fraction is a half, and a number of elements above all sizes:
    that of an edit's coefficients that are not 0, which then uses all of its basis.

    Args:
        known: tensors that were there before.

    Attributes:
        known: their bytes.
        now: bytes of what was made and is still in use. peak: their maximum.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self._known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self.known = sum(storage.nbytes() for storage in self._known.values())
        self._live: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """PyTorch's contract: run the operator."""
        if func in _SCALARS and isinstance(args[0], FakeTensor):
            return 0.5 if args[0].is_floating_point() else 2**31
        result = func(*args, **(kwargs or {}))
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        if key in given or key in self._known or key in self._live:
            return
        self._live[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self.now -= size
        del self._live[key]


@contextmanager
def counting(known: Iterable[Tensor], fake: bool) -> Iterator[LiveBytes]:
    """What is allocated inside.

    Args:
        known: tensors that were there before. fake: whether nothing is computed, and no tensor has data.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    with mode, LiveBytes(map(mode.from_tensor, known) if fake else known) as live:
        yield live


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
