"""The survey of a disk's extents: complete, exact where nothing changes, and never a hole where there is data."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import survey
from snapmount.core.extents import HOLE, ZERO, json_map, json_map_size
from snapmount.core.survey import Survey
from snapmount.errors import UnreachableError
from snapmount.images import nbd

from ..rig.libvirtd import wait_for
from ..strategies import PROPERTY

UNIT = survey.LEAST_BYTES // 4  # of a disk in the property tests
FLAGS = st.sampled_from([0, HOLE, ZERO, HOLE | ZERO])


def answer(flags: list[int], offset: int, length: int, most: int) -> list[int]:
    """As NBD servers may: the extents from `offset` on, so many at most, the last one whole."""
    units = [(flags[n], max(n * UNIT, offset), (n + 1) * UNIT) for n in range(offset // UNIT, len(flags))]
    told: list[int] = []
    for flag, run in groupby(units, key=lambda unit: unit[0]):
        parts = list(run)
        if parts[0][1] >= offset + length or len(told) >= 2 * most:
            break
        told += [parts[-1][2] - parts[0][1], flag]
    return told


@PROPERTY
@given(st.lists(FLAGS, max_size=300), st.data())
def test_a_disk_is_told_of_as_the_server_tells_of_it(flags: list[int], data: st.DataObject) -> None:
    size = len(flags) * UNIT
    told = Survey(size)
    while question := told.question():
        offset, length = question
        assert 0 < length <= survey.MOST_BYTES
        assert offset + length <= size
        told.learn(*(answer(flags, *question, data.draw(st.integers(1, 9))) for _ in range(2)))
    assert told.extents.end == size
    assert [(e.flags, e.length) for e in told.extents] == [(f, len(list(run)) * UNIT) for f, run in groupby(flags)]


@PROPERTY
@given(st.lists(FLAGS, min_size=1, max_size=300), st.data())
def test_only_what_is_zero_both_times_is_zero(flags: list[int], data: st.DataObject) -> None:
    """A guest moves data from the origin into the scratch file while QEMU looks at both."""
    moved = data.draw(st.lists(st.booleans(), min_size=len(flags), max_size=len(flags)))
    once = [HOLE | ZERO if missed else flag for flag, missed in zip(flags, moved, strict=True)]
    answers = data.draw(st.permutations([once, flags]))
    told = Survey(len(flags) * UNIT)
    while question := told.question():
        told.learn(*(answer(each, *question, data.draw(st.integers(1, 9))) for each in answers))
    both = [first & second for first, second in zip(*answers, strict=True)]
    assert [(e.flags, e.length) for e in told.extents] == [(f, len(list(run)) * UNIT) for f, run in groupby(both)]
    assert all(not told.extents.find(n * UNIT).is_zero for n, flag in enumerate(flags) if not flag & ZERO)


def test_a_question_is_as_large_as_its_answer_is_small() -> None:
    told, size = Survey(1 << 50), survey.FIRST_BYTES
    while size < survey.MOST_BYTES:
        assert told.question() == (told.extents.end, size)
        told.learn([size, HOLE | ZERO], [size, HOLE | ZERO])
        size *= 2
    many = [512, 0, 512, HOLE | ZERO] * (survey.ENOUGH_EXTENTS + 1)
    while size > survey.LEAST_BYTES:
        assert told.question() == (told.extents.end, size)
        told.learn(many, many)
        size //= 2
    told.learn(many, many)
    assert told.question() == (told.extents.end, survey.LEAST_BYTES)


@pytest.mark.parametrize(
    "answers",
    [([], []), ([0, 0], [0, 0]), ([512, 0], []), ([], [512, 0]), ([1025, 0], [1025, 0]), ([1025, 3], [2000, 0])],
    ids=repr,
)
def test_answers_that_make_no_sense_are_an_error(answers: tuple[list[int], list[int]]) -> None:
    with pytest.raises(UnreachableError):
        Survey(1024).learn(*answers)


# -- of QEMU's own server ----------------------------------------------------------------------------------------------


@pytest.fixture(
    params=[(800 << 30, 65536, 3000), (1 << 28, 8192, 12_000)], ids=["scattered in 800 GiB", "in one piece of a disk"]
)
def export(request: pytest.FixtureRequest) -> Iterator[str]:
    """The socket of qemu-nbd, with a raw disk of very many extents."""
    size, cluster, count = request.param
    generator = random.Random(5)
    with tempfile.TemporaryDirectory(prefix="snapmount-") as directory:  # tmp_path may be too long for a unix socket
        image, socket = Path(directory, "image"), Path(directory, "socket")
        with image.open("wb", buffering=0) as f:
            f.truncate(size)
            for number in sorted(generator.sample(range(size // cluster), count)):
                f.seek(number * cluster)
                f.write(b"x" * 4096)
        command = ["qemu-nbd", "--read-only", "--format=raw", "--persistent", "--shared=4", "-x", "vda"]
        with subprocess.Popen([*command, "-k", socket, image], stdin=subprocess.DEVNULL) as process:
            try:
                wait_for(socket.exists, "qemu-nbd listens")
                yield str(socket)
            finally:
                process.terminate()


async def test_the_map_is_that_of_qemu_img_also_with_thousands_of_extents(export: str) -> None:
    uri = f"nbd+unix:///vda?socket={export}"
    told = (await trio.run_process(["qemu-img", "map", "--output=json", uri], capture_stdout=True)).stdout
    async with nbd.opened("vda", export, "vda", 30.0) as image:
        extents = await image.extents()
    keys = ("start", "length", "zero", "data")
    ours = json.loads(json_map(extents, 0, json_map_size(extents)))
    assert [[each[key] for key in keys] for each in ours] == [[each[key] for key in keys] for each in json.loads(told)]
    assert len(ours) > 5000
