"""The GPU as bench/gpu sees it, through the driver alone (libcuda, by ctypes): its name, free memory, the speed of a copy inside it, its clocks."""
import ctypes
import os
import shutil
import statistics
import subprocess


def clocks():
    """Name, driver and clocks by nvidia-smi, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,temperature.gpu"
    done = subprocess.run(["nvidia-smi", "-i", "0", "--query-gpu=" + query, "--format=csv,noheader"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return f"{done.stdout.strip()} ({query})" if done.returncode == 0 else None


class Device:
    """Keeps the device's primary context. Raises OSError where there is no driver or no device."""

    def __init__(self, index):
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        self.call("cuDeviceGet", ctypes.byref(device), index)
        self.call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        self.context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.call("cuCtxSetCurrent", self.context)

    def call(self, function, *args):
        code = getattr(self.lib, function)(*args)
        if code:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(text))
            raise OSError(f"{function}: {text.value.decode() if text.value else 'error'} ({code})")

    def free(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def copy_bandwidth(self, most, times=20):
        """Bytes read + bytes written a second by a copy of `most` bytes (less where memory is short), the median of `times` after a warm-up."""
        bytes_ = min(most, self.free() // 4) & ~0xfffff
        if not bytes_:
            raise OSError(f"{self.name}: {self.free()} bytes are free on the device, a copy is measured with 4 MiB or more")
        a, b, stream, begin, end = (ctypes.c_void_p() for _ in range(5))
        ms = ctypes.c_float()
        self.call("cuMemAlloc_v2", ctypes.byref(a), ctypes.c_size_t(bytes_))
        self.call("cuMemAlloc_v2", ctypes.byref(b), ctypes.c_size_t(bytes_))
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        self.call("cuEventCreate", ctypes.byref(begin), 0)
        self.call("cuEventCreate", ctypes.byref(end), 0)
        noise = os.urandom(1 << 20)  # zeros may travel faster than data does
        for at in range(0, bytes_, len(noise)):
            self.call("cuMemcpyHtoD_v2", ctypes.c_void_p(a.value + at), noise, ctypes.c_size_t(len(noise)))
        seconds = []
        for turn in range(times + 5):
            self.call("cuEventRecord", begin, stream)
            self.call("cuMemcpyDtoDAsync_v2", b, a, ctypes.c_size_t(bytes_), stream)
            self.call("cuEventRecord", end, stream)
            self.call("cuEventSynchronize", end)
            self.call("cuEventElapsedTime", ctypes.byref(ms), begin, end)
            if turn >= 5:
                seconds.append(max(ms.value, 1e-6) / 1e3)
        for event in (begin, end):
            self.call("cuEventDestroy_v2", event)
        self.call("cuStreamDestroy_v2", stream)
        self.call("cuMemFree_v2", a)
        self.call("cuMemFree_v2", b)
        return 2 * bytes_ / statistics.median(seconds)
