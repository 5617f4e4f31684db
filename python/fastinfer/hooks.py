"""The hooks on a model's modules."""

from itertools import chain

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Tells before every call which hooks a model has; one that goes is noticed by `read` alone.

    Looking through all modules takes as long as a small layer. But a hook that is added, to
    whatever module, moves ``RemovableHandle.next_id``. While that stands still, and no module has
    taken the place of another, no hook has come.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.read()

    def any_added(self) -> bool:
        """Whether a hook has come to any module since they were last looked up."""
        return self._next_id != RemovableHandle.next_id

    def ids(self) -> tuple[int, ...]:
        """The hooks that run at a call, numbered by torch, in the order of the modules."""
        if not self.any_added() and self._children == self._children_now():
            return self._ids
        return self.read()

    def read(self) -> tuple[int, ...]:
        """The same, looked up in any case."""
        self._next_id = RemovableHandle.next_id  # before the modules, which may get one meanwhile
        modules = list(self._model.modules())
        self._dicts = [module._modules for module in modules if module._modules]
        self._children = self._children_now()
        self._ids = tuple(
            number
            for module in modules
            for hooks in (
                module._forward_pre_hooks,
                module._forward_hooks,
                module._backward_pre_hooks,
                module._backward_hooks,
            )
            for number in hooks
        )
        return self._ids

    def _children_now(self) -> list[nn.Module | None]:
        return list(chain.from_iterable(map(dict.values, self._dicts)))
