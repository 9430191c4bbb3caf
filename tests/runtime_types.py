"""Checks what every function of the package takes and returns, shapes of tensors included, while tests run."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception

# As type checkers do, take an int where a float is asked for.
_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked. Unchecked where it speaks of `Self`, which beartype understands in whole classes only,
    or of a protocol that cannot be checked at run time.
    """
    try:
        return _CHECK(function)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):
        return function
