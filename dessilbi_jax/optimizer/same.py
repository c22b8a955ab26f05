"""Whatever a compiled function is made for, as a key under which it is found again."""

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Same(Generic[T]):
    """Holds a value as a static argument of `jax.jit`, be it hashable or not.

    Two of them are equal where what they hold is: by value as far as it can be hashed, else by
    identity, tuples entry by entry.

    Example:
        >>> from dessilbi_jax.optimizer.same import Same
        >>> rate = lambda count: 0.1
        >>> Same(((1, 2), rate)) == Same(((1, 2), rate)), Same([1]) == Same([1])
        (True, False)
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self._key = _key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return (type(value), *map(_key, value))
    try:
        hash(value)
    except TypeError:
        return id(value)  # which no other has while this one is held
    return value
