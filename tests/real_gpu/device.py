"""Allocates and computes on a GPU, in the processes of the check: with PyTorch, else with the driver's libcuda."""

import ctypes
import os
from typing import Any

import attrs

VARIABLE = "MAAS_BACKOFF_TEST_GPU"
"""The environment variable that chooses how: "torch", "libcuda", or "pretend" (libcuda of the pretend driver)."""

# One thread each. ptxas 12.9 accepts this text for sm_50 to sm_120; the driver compiles it for the device.
KERNELS = b"""
.version 6.4
.target sm_50
.address_size 64

.visible .entry spin(.param .u64 nanoseconds)
{
    .reg .pred %running;
    .reg .u64 %limit, %begun, %now;
    ld.param.u64 %limit, [nanoseconds];
    mov.u64 %begun, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begun;
    setp.lt.u64 %running, %now, %limit;
    @%running bra again;
    ret;
}

.visible .entry corrupt()
{
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 8;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""


class CudaError(RuntimeError):
    """Raised when libcuda refuses a call."""


@attrs.frozen
class Seen:
    """CUDA's answers to a process: the number of devices, and the UUID and the memory (MiB) of the first one."""

    count: int
    uuid: str
    free: int
    total: int


class CudaDevice:
    """The first visible device, through libcuda. Any thread may use it."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._taken: list[Any] = []
        self._module: ctypes.c_void_p | None = None
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    def _call(self, name: str, *args: Any) -> None:
        if self._context:
            self._lib.cuCtxSetCurrent(self._context)  # each thread has its own current context
        if code := getattr(self._lib, name)(*args):
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(code, ctypes.byref(text))
            raise CudaError(f"{name}: {(text.value or b'?').decode()}")

    def allocate(self, mib: int) -> None:
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(mib << 20))
        self._taken.append(pointer)

    def release(self) -> None:
        """Free all that was allocated."""
        for pointer in self._taken:
            self._call("cuMemFree_v2", pointer)
        self._taken.clear()

    def exhaust(self) -> None:
        """Allocate more than the device has."""
        self.allocate(self.seen().total * 6 // 5)

    def spin(self, seconds: float) -> None:
        """Keep one kernel running for a time, and wait for its end."""
        self._launch("spin", ctypes.c_uint64(int(seconds * 1e9)))

    def corrupt(self) -> None:
        """Write to an illegal address. The context is of no use afterwards."""
        self._launch("corrupt")

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    def seen(self) -> Seen:
        count, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        self._call("cuDeviceGetUuid_v2", uuid, self._device)
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        text = bytes(uuid).hex()
        name = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        return Seen(count.value, f"GPU-{name}", free.value >> 20, total.value >> 20)

    def _launch(self, kernel: str, *values: ctypes.c_uint64) -> None:
        if self._module is None:
            module = ctypes.c_void_p()
            self._call("cuModuleLoadData", ctypes.byref(module), KERNELS)
            self._module = module
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._module, kernel.encode())
        parameters = (ctypes.c_void_p * 1)(*map(ctypes.addressof, values))
        self._call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)
        self.synchronize()


class TorchDevice(CudaDevice):
    """The same device, with PyTorch's allocator and errors; PyTorch uses the primary context, too."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        torch.cuda.init()
        torch.empty(1, device="cuda")
        super().__init__()

    def allocate(self, mib: int) -> None:
        self._taken.append(self._torch.empty(mib << 20, dtype=self._torch.uint8, device="cuda"))

    def release(self) -> None:
        self._taken.clear()
        self._torch.cuda.empty_cache()

    def synchronize(self) -> None:
        self._torch.cuda.synchronize()


def open_device() -> CudaDevice:
    return TorchDevice() if os.environ[VARIABLE] == "torch" else CudaDevice()
