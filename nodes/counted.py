"""A bank as ComfyUI's cache under RAM pressure counts it."""

from ..lorweb_core import BasisBank


class CountedBank(BasisBank, list):
    """A bank that is also the list of its tensors.

    That cache weighs a node's outputs by the tensors in lists alone, and would take a bank of gigabytes for nothing.
    """

    # As any object: told apart by identity, and written without its numbers.
    __eq__, __ne__, __hash__, __repr__ = object.__eq__, object.__ne__, object.__hash__, object.__repr__

    def __init__(self, bank: BasisBank):
        list.__init__(self, bank.tensors)
        vars(self).update(vars(bank))
