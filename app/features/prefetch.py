"""Asking the CPU for memory before it is needed.

The rows of a batch are known in advance, and most of the time of an update goes into waiting for the memory of its key
(at a million keys three quarters of it): so kernels ask for the memory of a row while they work on the rows before it.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, row: Any) -> Any:
    """`prefetch(array, row)` starts loading the cache line where array[row] begins; it changes and returns nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, memory.strides)[0]
        address = builder.add(builder.ptrtoint(memory.data, stride.type), builder.mul(arguments[1], stride))
        pointer, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        declared = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0")
        to_read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(address, pointer), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate
