"""A guest with Debian's own kernel in qemu, as a rule without hardware virtualisation: slow, and a whole machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from machines.machine import PORTS, Images, Machine, setting

KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"


class Qemu(Machine):
    """Its disks are /dev/vdc, vdd, ... and its ports virtio-serial ports."""

    def prepare(self) -> None:
        """Do nothing: it has its files in its first disk."""

    def command(self, images: Images, disks: Sequence[Path]) -> list[str]:
        accelerator = setting("ACCEL", "tcg")
        drives = [
            f"file={images.root}/root.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe",
            # User-Mode Linux locks what it only reads, too, and qemu then would not start beside it.
            f"file={images.kopia}/kopia.ext4,format=raw,if=virtio,readonly=on,file.locking=off",
            *(f"file={disk},format=raw,if=virtio,cache=unsafe" for disk in disks),
        ]
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-machine", "q35", "-smp", setting("CPUS", "2"), "-m", setting("MEMORY_MIB", "3072")]
        # Few instructions beyond the base: the emulator is slower at the wide ones, and OpenZFS times all it finds.
        if accelerator == "tcg":
            command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]
        else:
            command += ["-accel", accelerator, "-cpu", "max"]
        command += ["-kernel", f"{images.boot}/vmlinux", "-initrd", f"{images.boot}/initrd.img"]
        command += ["-append", f"{KERNEL_ARGUMENTS} {setting('KERNEL_ARGUMENTS', '')}"]
        command += ["-serial", f"file:{self.console}"]
        for drive in drives:
            command += ["-drive", drive]
        command += ["-virtfs", f"local,path={self.exchange.resolve()},mount_tag=exchange,security_model=none"]
        command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        for number in range(PORTS):
            command += ["-chardev", f"socket,id=port{number},path={self.state}/port{number},server=on,wait=off"]
            command += ["-device", f"virtserialport,chardev=port{number},name=kopiatomic.{number}"]
        return command
