"""Errors of the nodes as the page wants them: of a long message it shows the beginning alone."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any


def in_plain_words(execute: Callable[..., Any]) -> Callable[..., Any]:
    """What a node runs, with errors that begin with what is wrong.

    Before the message of an error that is not Python's own the page puts the name of its module, and of a file the
    core's errors give the whole path first. The log has both, in the traceback.
    """

    @wraps(execute)
    def plain(*args: Any, **kwargs: Any) -> Any:
        try:
            return execute(*args, **kwargs)
        except (ValueError, OSError) as error:
            message, own = _file_name_first(str(error)), type(error).__module__ == "builtins"
            if own and message == str(error):
                raise
            raise (type(error) if own else ValueError)(message) from error

    return plain


def _file_name_first(message: str) -> str:
    """``folder/name: what`` as ``name: what (in folder)``."""
    path, colon, what = message.partition(": ")
    if not colon or not os.path.isabs(path):
        return message
    folder, name = os.path.split(path)
    return f"{name}: {what} (in {folder})"
