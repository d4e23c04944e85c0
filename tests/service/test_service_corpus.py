"""The corpus of images and non-images over HTTP, and mutations of it: never a 5xx, never a crash.

`FUZZ_MUTATIONS=20000 python -m pytest tests/service/test_service_corpus.py -k mutations` runs the whole fuzz.
"""

from __future__ import annotations

import os
import random
import resource
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.problems import PROBLEMS
from tests.helpers.corpus import BY_NAME, CORPUS, Case
from tests.service.conftest import Served
from tests.service.test_service_problems import check

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
ALLOWED = {200, 413, 415, 422}
MOST_BYTES = 300_000
"""Largest image to mutate: larger ones take long and add nothing."""


def scores(answer: httpx.Response) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer.json()["predictions"]}


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_every_case_is_answered_as_it_should_be(service: Served, case: Case) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = service.client.post("/predict", files={"file": (case.filename, case.data)}, params={"views": 1})
    if answer.status_code == 200:
        assert case.accepted or not case.refused
        assert set(case.notes) <= set(answer.json()["notes"])
        assert len(answer.json()["warnings"]) == len(answer.json()["notes"])
    else:
        code = answer.json()["code"]
        assert code in case.outcomes
        check(answer, PROBLEMS[code].status, code)
    if case.header_only:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    if case.twin and answer.status_code == 200:
        twin = service.client.post("/predict", files={"file": BY_NAME[case.twin].data}, params={"views": 1})
        # The network's logits move by GAIN / 255 for each gray level.
        assert scores(answer) == pytest.approx(scores(twin), abs=0.02 + 0.02 * case.tolerance)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield images of the corpus with bytes changed, deleted, repeated, or replaced by another image's."""
    rng = random.Random(seed)
    sources = [data for case in CORPUS if 0 < len(data := case.data) <= MOST_BYTES]
    telling = [b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80"]
    for _ in range(count):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            # Most of the structure is in the first few hundred bytes.
            at = rng.randrange(min(len(data), rng.choice((32, 400, 1 << 30)))) if data else 0
            kind = rng.randrange(7)
            if kind == 0 and data:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and data:
                data[at] = rng.randrange(256)
            elif kind == 2:
                data[at : at + 4] = rng.choice(telling)
            elif kind == 3:
                del data[at : at + rng.randrange(1, 64)]
            elif kind == 4:
                length = rng.randrange(1, 2000)
                data[at:at] = data[at : at + length]
            elif kind == 5:
                other = rng.choice(sources)
                start = rng.randrange(len(other))
                data[at : at + 200] = other[start : start + rng.randrange(1, 200)]
            else:
                data = data[: max(at, 1)] if rng.random() < 0.5 else data
        yield with_checksums(bytes(data)) if rng.random() < 0.5 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with corrected chunk checksums, so that its changed chunks are read; other data unchanged."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4])
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(out)


def test_mutations_never_break_the_service(service: Served) -> None:
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(4) as threads:

        def send(image: bytes) -> tuple[int, bytes]:
            answer = service.client.post("/predict", content=image, params={"views": 1})
            return answer.status_code, image

        for status, image in threads.map(send, mutations(MUTATIONS, SEED)):
            statuses[status] += 1
            assert status in ALLOWED, (status, image[:64].hex())
    assert sum(statuses.values()) == MUTATIONS
    assert len(statuses) >= 3  # not everything was refused
    assert service.client.get("/readyz").status_code == 200
    print(dict(statuses))
