"""May a task start on a GPU now? What NVML says, less what is promised."""
