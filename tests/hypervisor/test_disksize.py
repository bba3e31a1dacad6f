"""The sizes of disks, out of libvirt's statistics: all layers of an image count."""

from __future__ import annotations

from snapmount.hypervisor.disksize import DiskSize, disk_sizes


def stats(*layers: dict[str, object]) -> dict[str, object]:
    """As libvirt tells of these images."""
    told = {f"block.{n}.{key}": value for n, layer in enumerate(layers) for key, value in layer.items()}
    return {"block.count": len(layers), **told}


def test_a_disk_takes_what_its_image_and_all_backing_files_take() -> None:
    told = stats(
        {"name": "vda", "capacity": 1000, "physical": 10, "allocation": 500},
        {"name": "vda", "capacity": 800, "physical": 200},
        {"name": "vda", "capacity": 700, "physical": 300, "allocation": 0},
        {"name": "vdb", "capacity": 50, "physical": 0},
    )
    assert disk_sizes(told) == {"vda": DiskSize(1000, 510), "vdb": DiskSize(50, 0)}


def test_nobody_knows_what_a_disk_takes_of_whose_layers_one_is_not_known() -> None:
    told = stats({"name": "vda", "capacity": 1000, "physical": 10}, {"name": "vda", "capacity": 800})
    assert disk_sizes(told) == {"vda": DiskSize(1000, None)}
    assert disk_sizes(stats({"name": "vda"}, {"name": "vda", "physical": 7})) == {"vda": DiskSize(0, None)}
    assert disk_sizes(stats()) == {}
