"""Values that cost time and depend on a key alone, kept for the next time: the coefficients of a grid."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The values that were asked for last: `kept.of(key, make)`.

    The key must say all that the value depends on, by content: not an object that may change. A value is not to be changed.

    most  how many are kept
    """

    def __init__(self, most: int = 128):
        self.most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of the key; `make()` where it is new, or where the key cannot be hashed, which is not kept."""
        try:
            value = self._values.pop(key)
        except KeyError:
            value = make()
        except TypeError:
            return make()
        self._values[key] = value      # the newest stands last
        while len(self._values) > self.most:
            self._values.popitem(last=False)
        return value
