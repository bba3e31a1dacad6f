"""An ordinary user's VMs at qemu:///session: the main job without root, through fusermount3."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import signal
import subprocess
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from ..rig import prefix, vm
from ..rig.account import Account
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SEED = 7


@pytest.mark.sample
def test_a_user_s_vm_is_shown_to_that_user_and_leaves_no_trace(account: Account) -> None:
    command = account.snapmount()

    def run(*args: str | Path) -> str:
        return account.run(*command, *args).stdout

    def run_json(*args: str | Path) -> Any:
        return json.loads(run("--json", *args))

    disks = [vm.Disk("vda", "raw"), vm.Disk("vdb", "qcow2")]
    mountpoint = account.home / "mount point"
    account.run("mkdir", mountpoint)
    with vm.running(
        f"{vm.PREFIX}-user",
        disks,
        command_line=f"snapmount.seed={SEED} snapmount.pause=1000",
        uri="qemu:///session",
        account=account,
    ) as guest:
        guest.keeps_writing(100)
        taken = run_json(guest.name, mountpoint)
        assert taken["connect"] == "qemu:///session"
        assert taken["scratch"]["directory"].startswith(f"{account.home}/.local/share/snapmount/")
        assert account.run("stat", "-c", "%a", account.runtime / "snapmount").stdout == "700\n"
        with pytest.raises(PermissionError):
            os.listdir(mountpoint)  # not even root looks into a user's mount
        copies = []
        for disk in disks:
            account.run("cp", mountpoint / f"{disk.name}.raw", account.home / disk.name)
            copies.append((account.home / disk.name).read_bytes())
        assert prefix.prove(SEED, copies) > 0
        assert [row["id"] for row in run_json("list")] == [taken["id"]]
        assert {line.split()[0] for line in run("dirty", guest.name).splitlines()} == {"vda", "vdb"}

        os.kill(taken["server"]["pid"], signal.SIGKILL)
        wait_for(lambda: run_json("list")[0]["state"] == "dead", "the server is dead")
        guest.keeps_writing(100)
        assert "re-attached to snapshot" in run("recover")
        for disk, copy in zip(disks, copies, strict=True):
            account.run("cp", "--force", mountpoint / f"{disk.name}.raw", account.home / disk.name)
            assert (account.home / disk.name).read_bytes() == copy

        run("umount", mountpoint)
        assert run_json("list") == []
        assert os.listdir(mountpoint) == []
        assert not (account.runtime / "snapmount").exists()
        assert not (account.home / ".local/share/snapmount").exists()
        assert not guest.has_job()

        admits_others_only_where_fuse_conf_permits_it(account, command, guest, mountpoint)

        booted = run_json("boot", "--wait-for", "guest is up", guest.name)
        attached = run_json("attach", guest.name, booted["name"])["attachments"]
        assert [(each["disk"], each["target"]) for each in attached] == [("vda", "vdc"), ("vdb", "vdd")]
        run("detach", guest.name)
        assert run_json("show", guest.name)["attachments"] == []
        account.run("virsh", "-c", "qemu:///session", "destroy", booted["name"])
        wait_for(lambda: run_json("list") == [], "the scratch VM has gone, and its snapshot")
        assert not (account.home / ".local/share/snapmount").exists()
        assert guest.write_errors() == 0


def admits_others_only_where_fuse_conf_permits_it(
    account: Account, command: list[str | Path], guest: vm.VM, mountpoint: Path
) -> None:
    """/etc/fuse.conf is another one in the mount namespace of the command, whose mount nobody else sees."""
    take = [*command, "--allow-other", guest.name, mountpoint]
    own = account.home / "fuse.conf"
    own.write_text("# user_allow_other\n")
    own.chmod(0o644)

    def in_namespace(first: str) -> subprocess.CompletedProcess[str]:
        as_user = f"setpriv --reuid={account.user} --regid={pwd.getpwnam(account.user).pw_gid} --clear-groups"
        home = f"env HOME='{account.home}' XDG_RUNTIME_DIR='{account.runtime}'"
        script = f"mount --bind '{own}' /etc/fuse.conf && {first} && exec {as_user} {home} {shlex.join(map(str, take))}"
        unshare = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", script]
        return subprocess.run(unshare, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=PIPE)

    refused = in_namespace("true")
    assert refused.returncode == 7
    assert "/etc/fuse.conf does not permit ordinary users" in refused.stderr
    remedy = refused.stderr.splitlines()[1].removeprefix("  try: ")
    done = in_namespace(remedy.replace("sudo ", ""))
    assert done.returncode == 0, done.stderr
    [taken] = json.loads(account.run(*command, "list", "--json").stdout)
    server = taken["server"]["pid"]
    look = ["nsenter", f"--target={server}", "--mount", "stat", "-c", "%a", str(mountpoint), f"{mountpoint}/vda.raw"]
    assert subprocess.run(look, capture_output=True, text=True).stdout == "555\n444\n", "root looks into it"
    account.run(*command, "delete", guest.name)
