"""The test machines: boots a guest, in User-Mode Linux or in qemu, and runs commands in it. Started by dev/vm."""
