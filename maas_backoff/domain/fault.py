"""The errors that mean a GPU fault: too little memory, a broken GPU, or a program's own error.

They are recognised by class name and text, so that no framework must be imported. Each text was seen in an error of
the framework that is named beside it.
"""

import re
from typing import Literal

Fault = Literal["", "out_of_memory", "gpu", "program"]
"""`program`: an error of the handler, on any device. CUDA does not work any more in that process."""

WORST_FIRST: tuple[Fault, ...] = ("out_of_memory", "gpu", "program")

_OOM_TYPES = frozenset({"OutOfMemoryError", "CudaOutOfMemoryError", "OutOfGpuMemoryError"})
_NOT_OF_A_GPU = "maxmemory|command not allowed"  # redis.exceptions.OutOfMemoryError


def _any(*texts: str) -> str:
    """Return a pattern for any of some texts. `re` compiles it at the first error: that takes long, and few need it."""
    return f"(?i:{'|'.join(texts)})"


_OOM_TEXT = _any(
    r"\b(?:CUDA|HIP|ROCm|XPU|MPS)\b[^\n]{0,60}out of memory",  # PyTorch, ONNX Runtime, CTranslate2, NCCL
    r"\bCu(?:da)?(?:Mem|Malloc)\w*\b[^\n]{0,60}out of memory",  # PyCUDA
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    r"\bCU[A-Z]+_(?:STATUS_)?ALLOC_FAILED",  # cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE
    r"INTERNAL ASSERT FAILED at [^\n]*CUDACachingAllocator",  # PyTorch, when NVML does not report the free memory
    r"BFCArena::\w+ Failed to allocate memory",  # ONNX Runtime
    r"RESOURCE_EXHAUSTED: [^\n]*(?:memory|allocat)",  # JAX
    "OOM when allocating",  # TensorFlow
    r"failed to allocate memory \[Op:",
    r"Error Code 2: OutOfMemory",  # TensorRT
    r"Free memory on device [^\n]* on startup is less than desired",  # vLLM
    "No available memory for the cache blocks",
    "Not enough memory[^\n]*--mem-fraction-static",  # SGLang
)
_OF_PROGRAMS = _any(
    "device-side assert",
    "cudaErrorAssert",
    "CUDA_ERROR_ASSERT",
    "CUDA error: (?:an illegal memory access|misaligned address)",  # Xid 31 and 13, which the gate leaves to programs
    "cudaErrorIllegalAddress",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
)
_OF_CALLS = _any(
    "invalid device ordinal",
    "cudaErrorInvalid(?:Value|Device|Configuration|DeviceFunction|Symbol|ResourceHandle)",
    "CUDA_ERROR_INVALID_(?:VALUE|DEVICE|HANDLE|IMAGE|PTX|SOURCE)",
    "CUDA error: invalid (?:argument|configuration argument|device function|resource handle)",
    "no kernel image is available",
    "too many resources requested for launch",
    "CUDNN_STATUS_(?:NOT_SUPPORTED|BAD_PARAM)",
)
_FAULT_TYPES = frozenset({"AcceleratorError", "CudaError", "CudaAPIError", "CUDARuntimeError", "CUDADriverError"})
_FAULT_TEXT = _any(
    r"CUDA(?: driver| unknown)? error",
    r"CUDA failure \d",  # ONNX Runtime
    "CUDA failed with error",  # CTranslate2
    "CUDA_ERROR_",
    "cudaError[A-Z]",
    "CUDNN_STATUS_",
    "cuDNN error",
    "CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)",
    "uncorrectable ECC",
    "GPU is lost",
    "fallen off the bus",
    "no CUDA-capable device",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    r"cudaGetDeviceCount\(\)",
)


def fault_of(kind: str, message: str) -> Fault:
    """Return the GPU fault that an error means, by the name of its class and its message; else ""."""
    if (kind in _OOM_TYPES and not re.search(_NOT_OF_A_GPU, message)) or re.search(_OOM_TEXT, message):
        return "out_of_memory"
    if re.search(_OF_PROGRAMS, message):
        return "program"
    if re.search(_OF_CALLS, message):
        return ""
    return "gpu" if kind in _FAULT_TYPES or re.search(_FAULT_TEXT, message) else ""


_ANOTHER_PROCESS = r"\bProcess (\d+) has [\d.]+ \w+ memory in use"


def other_processes(message: str) -> list[int]:
    """Return the ids of other processes that an error of PyTorch names as users of the memory."""
    return [int(pid) for pid in re.findall(_ANOTHER_PROCESS, message)]


def may_come_back(fault: Fault) -> bool:
    """Return whether a task comes back after this fault on a GPU without using a retry."""
    return fault in {"out_of_memory", "gpu"}
