"""Loads the shared fixtures and, outside the VM, what hands tests/zfs to the VM."""

import os

pytest_plugins = ["tests.support.programs", "tests.support.filesystems", "tests.support.leftovers"]
if "KOPIATOMIC_IN_VM" not in os.environ:
    pytest_plugins.append("tests.support.vm_items")
