"""The only modules that start processes, call the kernel through ctypes or read the mount table."""
