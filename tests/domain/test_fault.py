"""The texts of real frameworks: which tell of a GPU's memory, of a GPU, or of a program's own doing."""

import pytest

from maas_backoff.domain.fault import Fault, fault_of, may_come_back, other_processes
from maas_backoff.domain.handler_outcome import outcome_of_error
from maas_backoff.domain.outcome import Failed

OUT_OF_MEMORY = [
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8 GiB"),
    ("OutOfMemoryError", "Out of memory allocating 8,589,934,592 bytes (allocated so far: 0 bytes)."),  # CuPy
    ("OutOfMemoryError", "XPU out of memory. Tried to allocate 2.00 GiB"),
    ("RuntimeError", "MPS backend out of memory (MPS allocated: 5 GiB)"),
    ("RuntimeError", "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ("AcceleratorError", "CUDA error: out of memory"),
    ("RuntimeError", "CUDA driver error: out of memory"),
    ("RuntimeError", 'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830'),
    ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ("RuntimeError", "cuFFT error: CUFFT_ALLOC_FAILED"),
    ("RuntimeError", "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("RuntimeException", "onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"),
    ("RuntimeException", "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"),
    ("RuntimeError", "CUDA failed with error out of memory"),  # CTranslate2
    ("ValueError", "Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory utilization"),
    ("ValueError", "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),  # vLLM
    ("MemoryError", "cuMemAlloc failed: out of memory"),  # PyCUDA
    ("ResourceExhaustedError", "{{function_node __wrapped__Mul}} failed to allocate memory [Op:Mul]"),  # TensorFlow
    ("ResourceExhaustedError", "OOM when allocating tensor with shape[64,512] and type float"),
    ("JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."),
    ("RuntimeError", "NCCL Error 1: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),
    ("RuntimeError", "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)"),  # TensorRT
    ("RuntimeError", "Not enough memory. Please try to increase --mem-fraction-static."),  # SGLang
]
BROKEN = [
    ("RuntimeError", "No CUDA GPUs are available"),
    ("RuntimeError", "CUDA unknown error - this may be due to an incorrectly set up environment"),
    ("RuntimeError", "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
    ("RuntimeError", "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
    ("RuntimeException", "CUDA failure 700: an illegal memory access was encountered ; GPU=0"),
    ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered"),
    ("AcceleratorError", "CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
]
OF_PROGRAMS = [
    ("AcceleratorError", "CUDA error: device-side assert triggered", "program"),
    ("AcceleratorError", "CUDA error: an illegal memory access was encountered", "program"),
    ("RuntimeError", "CUDA error: invalid device ordinal", ""),
    ("RuntimeError", "CUDA error: no kernel image is available for execution on the device", ""),
    ("RuntimeError", "CUDA error: invalid configuration argument", ""),
    ("CUDARuntimeError", "cudaErrorInvalidValue: invalid argument", ""),
    ("OutOfMemoryError", "command not allowed when used memory > 'maxmemory'.", ""),  # a Redis of the handler's
    ("MemoryError", "Unable to allocate 8.00 GiB for an array", ""),  # NumPy, in the machine's memory
    ("ResourceExhausted", "429 Quota exceeded", ""),
    ("RuntimeError", "the model is out of stock", ""),
]


@pytest.mark.parametrize(
    ("kind", "message", "fault"),
    [
        *((kind, message, "out_of_memory") for kind, message in OUT_OF_MEMORY),
        *((kind, message, "gpu") for kind, message in BROKEN),
        *OF_PROGRAMS,
    ],
)
def test_an_error_is_told_by_its_class_and_text(kind: str, message: str, fault: Fault) -> None:
    assert fault_of(kind, message) == fault


def test_a_cause_counts_and_only_a_gpu_s_failure_keeps_no_exception() -> None:
    """A broken CUDA context is the program's doing: a retry is used, and the log has the exception."""
    error = ValueError("inference failed")
    error.__cause__ = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    failed = outcome_of_error(error)
    assert isinstance(failed, Failed) and (failed.fault, failed.exception) == ("out_of_memory", None)
    error.__cause__ = RuntimeError("CUDA error: device-side assert triggered")
    failed = outcome_of_error(error)
    assert isinstance(failed, Failed) and (failed.fault, failed.exception) == ("program", error)
    assert may_come_back("gpu") and not may_come_back("program")


def test_another_process_that_has_the_memory_is_named_by_pytorch() -> None:
    message = "CUDA out of memory. GPU 0 has a total capacity of 24 GiB. Process 4242 has 23.1 GiB memory in use."
    assert other_processes(message) == [4242]
    assert not other_processes("CUDA out of memory. Including non-PyTorch memory, this process has 8 GiB in use.")
