"""The devices of a scratch VM: which of the original's stay, and how they are cut off from it and from its host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement

from ..core.domainxml import add_unlabelled_source, check_confinable
from ..core.leftout import LeftOut

NONE, ISOLATED = "none", "isolated"  # the networks that are not libvirt's
AGENT_PORT = "org.qemu.guest_agent.0"
LOOPBACK = "127.0.0.1"

Left = list[LeftOut]

# Devices that are of QEMU alone.
_AS_THEY_ARE = frozenset({"controller", "crypto", "emulator", "hub", "iommu", "memballoon", "nvram", "panic"})
# What of a disk concerns the guest, and not the image behind it.
_OF_THE_GUEST = frozenset({"target", "address", "boot", "serial", "wwn", "vendor", "product", "geometry", "blockio"})
_OF_THE_DRIVER = frozenset(
    {"ats", "event_idx", "ioeventfd", "iommu", "iothread", "packed", "page_per_vq", "queue_size", "queues"}
    | {"discard", "detect_zeroes"}
)
# Where the view is lost, the guest gets errors, whatever the original's guest would; a full file system of the overlays
# can be mended: the VM is paused, as is QEMU's own default for it, and can be resumed.
_ON_ERROR = {"error_policy": "enospace", "rerror_policy": "report"}
_OF_RAM = ("dimm", "virtio-mem")  # <memory model=...>
_NO_CONSOLE = "isa-debug"  # <serial><target type=...>: what firmware writes to debug it


@dataclass(frozen=True)
class Source:
    """What a disk of the scratch VM is made of: absolute paths."""

    overlay: str  # qcow2, the scratch VM's own
    file: str  # raw, of the view: what the overlay lies over


@dataclass
class DeviceFilter:
    """Picks the devices that stay; tells in `left` which do not, and in `notes` which are not the same."""

    disks: Mapping[str, Source]
    label_models: Sequence[str]  # the security drivers that label this host's VMs
    network: str
    console_log: str
    left: Left
    notes: list[str]
    has_console: bool = field(default=False, init=False)
    has_agent_channel: bool = field(default=False, init=False)

    def keep(self, devices: Element | None) -> list[Element]:
        """The scratch VM's devices, in the original's order."""
        kept = []
        for device in devices if devices is not None else ():
            new = self._kept(device)
            if new is not None:
                for alias in new.findall("alias"):
                    new.remove(alias)
                kept.append(new)
        return kept

    def _kept(self, device: Element) -> Element | None:
        if device.tag in _AS_THEY_ARE:
            return device
        keep = _KEEPERS.get(device.tag)
        return keep(self, device) if keep else self._leave(device, _WHY.get(device.tag, "not taken over"))

    def _leave(self, device: Element, why: str) -> Element | None:
        self.left.append(LeftOut(_name(device), why))
        return None

    # -- disks ---------------------------------------------------------------------------------------------------------

    def _disk(self, disk: Element) -> Element | None:
        device = disk.get("device", "disk")
        is_removable = device in ("cdrom", "floppy")
        source = self.disks.get(_name(disk))
        if source is None and not is_removable:
            return self._leave(disk, "not part of the snapshot")
        new = Element("disk", {"type": "file", "device": device})
        if "model" in disk.attrib:
            new.set("model", disk.attrib["model"])
        was = disk.find("driver")
        options = {k: v for k, v in was.attrib.items() if k in _OF_THE_DRIVER} if was is not None else {}
        if source:
            # unsafe: flushes may be left out, since after a crash of the host the view would be gone anyway
            SubElement(new, "driver", {"name": "qemu", "type": "qcow2", "cache": "unsafe", **_ON_ERROR, **options})
            check_confinable(source.overlay, self.label_models, "another --overlay-dir")
            SubElement(new, "source", file=source.overlay)
            new.append(self._backing(source.file))
        new.extend(child for child in disk if child.tag in _OF_THE_GUEST or child.tag == "readonly")
        return new

    def _backing(self, file: str) -> Element:
        """The file of the view."""
        backing = Element("backingStore", type="file")
        SubElement(backing, "format", type="raw")
        add_unlabelled_source(backing, file, self.label_models)
        SubElement(backing, "backingStore")
        return backing

    # -- consoles and channels -----------------------------------------------------------------------------------------

    def _serial(self, device: Element) -> Element | None:
        """A pty in the place of whatever it was, with the same port; the first one is logged."""
        target = device.find("target")
        if device.tag == "console" and (target is None or target.get("type", "serial") == "serial"):
            return None  # stands for the first serial port, of which libvirt makes it again
        new = Element(device.tag, type="pty")
        is_console = device.tag != "parallel" and (target is None or target.get("type") != _NO_CONSOLE)
        if is_console and not self.has_console:
            self.has_console = True
            SubElement(new, "log", file=self.console_log, append="off")
        new.extend(child for child in device if child.tag in ("target", "address"))
        return new

    def _channel(self, device: Element) -> Element | None:
        """A channel to libvirt itself, to the graphics, or a pty; without a source, libvirt makes its own."""
        kind, target = device.get("type", ""), device.find("target")
        is_virtio = target is not None and target.get("type") == "virtio" and "name" in target.attrib
        if not is_virtio or kind not in ("unix", "pty", "spicevmc", "qemu-vdagent"):
            return self._leave(device, "a channel to a program, a file or a device of the host")
        assert target is not None
        new = Element("channel", type=kind)
        SubElement(new, "target", {"type": "virtio", "name": target.attrib["name"]})
        stays = ("address",) if kind in ("unix", "pty") else ("address", "source")
        new.extend(child for child in device if child.tag in stays)
        self.has_agent_channel = self.has_agent_channel or (kind == "unix" and target.get("name") == AGENT_PORT)
        return new

    # -- network -------------------------------------------------------------------------------------------------------

    def _interface(self, device: Element) -> Element | None:
        if self.network == NONE:
            return self._leave(device, "no network was asked for")
        if device.get("type") == "hostdev":
            return self._leave(device, "a device of the host")
        isolated = self.network == ISOLATED
        new = Element("interface", type="user" if isolated else "network")
        if isolated:
            SubElement(new, "link", state="down")  # as if no cable were plugged in
        else:
            SubElement(new, "source", network=self.network)
            new.extend(device.findall("mtu"))  # libvirt cannot set it for the other kind
        new.extend(child for child in device if child.tag in ("model", "address", "boot", "rom", "acpi"))
        return new

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _graphics(self, device: Element) -> Element | None:
        kind = device.get("type", "")
        if kind not in ("vnc", "spice"):
            return self._leave(device, "a display of this host")
        new = Element("graphics", {"type": kind, "autoport": "yes", "listen": LOOPBACK})
        if "keymap" in device.attrib:
            new.set("keymap", device.attrib["keymap"])
        SubElement(new, "listen", type="address", address=LOOPBACK)
        return new

    def _tpm(self, device: Element) -> Element:
        self.notes.append("the TPM is emulated anew, and empty")
        was = device.find("backend")
        version = was.get("version") if was is not None else None
        new = Element("tpm", {key: value for key, value in device.attrib.items() if key == "model"})
        SubElement(new, "backend", {"type": "emulator", "version": version or "2.0"})
        new.extend(device.findall("address"))
        return new

    def _rng(self, device: Element) -> Element:
        for backend in device.findall("backend"):
            backend.clear()
            backend.set("model", "random")
            backend.text = "/dev/urandom"
        return device

    def _input(self, device: Element) -> Element | None:
        if device.get("type") in ("passthrough", "evdev"):
            return self._leave(device, "a device of the host")
        return device

    def _memory(self, device: Element) -> Element | None:
        """Memory modules; which of the host's they are made of is the original's tuning, as is `memoryBacking`."""
        model = device.get("model", "")
        if model not in _OF_RAM:
            return self._leave(device, _WHY_NO_RAM.get(model, "not taken over"))
        device.attrib.pop("access", None)
        for source in device.findall("source"):
            device.remove(source)
        return device

    def _sound(self, device: Element) -> Element:
        for audio in device.findall("audio"):
            device.remove(audio)
        return device

    def _video(self, device: Element) -> Element:
        for model in device.findall("model"):
            model.attrib.pop("blob", None)  # needs memory that is shared (memoryBacking)
            for acceleration in model.findall("acceleration"):
                model.remove(acceleration)  # needs a display of this host
        for driver in device.findall("driver"):
            device.remove(driver)  # may name a process of the original (vhost-user)
        return device

    def _audio(self, _device: Element) -> None:
        """Nothing is played on the host: libvirt makes a silent one."""

    def _watchdog(self, device: Element) -> Element:
        if device.get("action") == "dump":
            device.set("action", "poweroff")  # dumps are for the original's administrator
        return device


_KEEPERS: Mapping[str, Callable[[DeviceFilter, Element], Element | None]] = {
    "audio": DeviceFilter._audio,
    "channel": DeviceFilter._channel,
    "console": DeviceFilter._serial,
    "disk": DeviceFilter._disk,
    "graphics": DeviceFilter._graphics,
    "input": DeviceFilter._input,
    "interface": DeviceFilter._interface,
    "memory": DeviceFilter._memory,
    "parallel": DeviceFilter._serial,
    "rng": DeviceFilter._rng,
    "serial": DeviceFilter._serial,
    "sound": DeviceFilter._sound,
    "tpm": DeviceFilter._tpm,
    "video": DeviceFilter._video,
    "watchdog": DeviceFilter._watchdog,
}
_WHY = {
    "filesystem": "a directory that is shared with the host",
    "hostdev": "a device of the host",
    "lease": "a lock of the original",
    "redirdev": "a device of the host",
    "shmem": "memory that is shared with others",
    "smartcard": "a device of the host",
    "vsock": "its address is the original's",
}
_WHY_NO_RAM = {
    "nvdimm": "memory in a file of the host",
    "sgx-epc": "memory of the host's for enclaves",
    "virtio-pmem": "memory in a file of the host",
}


def _name(device: Element) -> str:
    """What a person calls the device: a disk's or channel's target, else the element's name."""
    target = device.find("target")
    if target is not None and device.tag in ("disk", "interface", "filesystem"):
        named = target.get("dev") or target.get("dir")
    else:
        named = target.get("name") if target is not None else None
    return named or device.tag
