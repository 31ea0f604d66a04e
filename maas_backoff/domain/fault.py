"""Which errors tell of a GPU: that its memory did not suffice, or that something is wrong with it.

Told by the names and texts of the errors, so that no framework has to be imported.
"""

import re
from typing import Literal

Fault = Literal["", "out_of_memory", "gpu"]

# PyTorch's, CuPy's, Numba's, TensorFlow's, JAX's (XLA) and ONNX Runtime's ways to say it.
_OOM_TYPES = frozenset({"OutOfMemoryError", "CudaOutOfMemoryError", "OutOfGpuMemoryError"})
_OOM_TEXT = re.compile(
    r"CUDA(?: error)?:? out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|HIP out of memory"
    r"|RESOURCE_EXHAUSTED: .*(?:memory|allocat)|CUBLAS_STATUS_ALLOC_FAILED|OOM when allocating",
    re.IGNORECASE | re.DOTALL,
)
_FAULT_TYPES = frozenset({"AcceleratorError", "CudaError", "CudaAPIError", "CUDARuntimeError", "CUDADriverError"})
_FAULT_TEXT = re.compile(
    r"CUDA error|CUDA driver error|CUDA_ERROR_|cudaError[A-Z]|CUDNN_STATUS_(?!NOT_SUPPORTED|BAD_PARAM)|cuDNN error"
    r"|CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)|device-side assert|uncorrectable ECC"
    r"|GPU is lost|fallen off the bus|no CUDA-capable device",
    re.IGNORECASE,
)


def fault_of(kind: str, message: str) -> Fault:
    """Return what an error, by the name of its class and its message, tells of the GPU."""
    if kind in _OOM_TYPES or _OOM_TEXT.search(message):
        return "out_of_memory"
    return "gpu" if kind in _FAULT_TYPES or _FAULT_TEXT.search(message) else ""
