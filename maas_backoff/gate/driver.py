"""The NVIDIA driver, as one thread reaches it through NVML."""

import logging

from maas_backoff.gate import library
from maas_backoff.gate.faultlog import FaultLog
from maas_backoff.gate.library import Library, NvmlError
from maas_backoff.gate.sample import NO_DRIVER


class Driver:
    """Starts NVML, and starts it anew after a reload of the driver: nothing else makes NVML answer then."""

    def __init__(self, nvml: Library, faults: FaultLog) -> None:
        self.library = nvml
        self.trouble: str = ""
        """Why NVML cannot be started; "" if it is started."""
        self._faults = faults

    def start(self) -> bool:
        """Start NVML. Return whether it answers."""
        try:
            self.library.initialise()
        except NvmlError as error:
            missing = error.code in {library.LIBRARY_NOT_FOUND, library.FUNCTION_NOT_FOUND}
            what = f"{NO_DRIVER}{error}" if missing else f"NVML cannot be initialised: {error}"
            self.trouble = f"{what}; {error.remedy}" if error.remedy else what
            self._faults.begins("driver", self.trouble, logging.DEBUG if missing else logging.WARNING)
            return False
        self.trouble = ""
        self._faults.is_over("driver")
        return True

    def restart(self) -> bool:
        """Stop NVML, and start it anew. Return whether it answers."""
        self.stop()
        return self.start()

    def stop(self) -> None:
        """Stop NVML, if it was started."""
        self.library.shut_down()

    @property
    def is_missing(self) -> bool:
        """Whether there is no driver on this machine."""
        return self.trouble.startswith(NO_DRIVER)
