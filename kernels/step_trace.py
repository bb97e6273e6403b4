"""What a step does, operation by operation: the proof without a GPU that it can be recorded once and played again.

A recorded step needs the same kernels on the same addresses every time. So it must not read anything back, must not
make tensors out of what the host knows, and must not decide by values. `StepTrace` watches for the first two; two
traces of the same step with different contents are equal if there is no third.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_READS = {
    aten._local_scalar_dense.default,
    aten.item.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}
_MADE = {aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.scalar_tensor.default}
_ONE_KERNEL = {aten.linear.default, aten.rms_norm.default, aten.scaled_dot_product_attention.default}
"""What is put together of other operations here and is one kernel on a GPU."""
_NO_KERNEL = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default}


class StrictError(AssertionError):
    """The step cannot be recorded; the message names the operation."""


class StepTrace(TorchDispatchMode):
    """operations: those that a GPU would launch a kernel for, views not counted; host_reads and host_made: those that
    cannot be recorded. strict: raises `StrictError` at the first of these."""

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.host_reads: list[str] = []
        self.host_made: list[str] = []
        self.entries: list[tuple[object, ...]] = []
        self._strict = strict
        self._made: dict[int, int] = {}  # storages made within the step, by number
        self._kept: list[object] = []  # so that no address is used twice

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func not in _ONE_KERNEL and func not in _READS and func not in _MADE:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._judge(func, args, kwargs)
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def compare(self, other: StepTrace) -> None:
        """Raises `StrictError` where the other trace is of other operations, or of the same on other addresses."""
        for number, (mine, theirs) in enumerate(zip(self.entries, other.entries, strict=False)):
            if mine != theirs:
                raise StrictError(f"operation {number} hangs on the contents: {theirs} and then {mine}")
        if len(self.entries) != len(other.entries):
            raise StrictError(f"{len(other.entries)} operations and then {len(self.entries)}: it hangs on the contents")

    def _judge(self, func: object, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        tensors = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
        masks = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and any(
            value.dtype in (torch.bool, torch.uint8) for value in _flat(args[1]) if isinstance(value, Tensor)
        )
        crosses = len({tensor.device.type for tensor in tensors}) > 1 or _moves(func, tensors, kwargs)
        repeats = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if func in _READS or masks or repeats or (crosses and func is not aten.copy_.default):
            self._found(self.host_reads, func, "reads on the host what the device holds")
        if func in _MADE or (crosses and func is aten.copy_.default):
            self._found(self.host_made, func, "makes a tensor of what the host holds")

    def _found(self, where: list[str], func: object, what: str) -> None:
        where.append(str(func))
        if self._strict:
            raise StrictError(f"{func} {what}, operation {len(self.operations)} of the step")

    def _note(self, func: Any, args: Sequence[object], kwargs: Mapping[str, object], result: object) -> None:
        given = {_storage(value) for value in _flat((args, kwargs)) if isinstance(value, Tensor)}
        made = [value for value in _flat(result) if isinstance(value, Tensor)]
        self._kept.append((args, kwargs, result))
        self.entries.append((str(func), *(self._describe(value) for value in _flat((args, kwargs)))))
        fresh = {_storage(value) for value in made} - given
        for storage in fresh:
            self._made[storage] = len(self._made)
        if func not in _NO_KERNEL and (fresh or func._schema.is_mutable):
            self.operations.append(str(func))

    def _describe(self, value: object) -> object:
        """A tensor by where it is: its address if it was there before the step, else by who made it."""
        if not isinstance(value, Tensor):
            return repr(value)
        storage = _storage(value)
        place = ("made", self._made[storage]) if storage in self._made else ("kept", storage)
        return (*place, value.storage_offset(), tuple(value.shape), tuple(value.stride()), str(value.dtype))


def _moves(func: object, tensors: Sequence[Tensor], kwargs: Mapping[str, object]) -> bool:
    device = kwargs.get("device")
    if func is not aten._to_copy.default or device is None or not tensors:
        return False
    return torch.device(str(device)).type != tensors[0].device.type


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _flat(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return [inner for part in value.values() for inner in _flat(part)]
    if isinstance(value, list | tuple):
        return [inner for part in value for inner in _flat(part)]
    return [value]


def traced(work: Callable[[], object], *, strict: bool = False) -> StepTrace:
    """The trace of one call."""
    with StepTrace(strict=strict) as trace:
        work()
    return trace
