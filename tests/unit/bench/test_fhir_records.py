"""Generated FHIR records: the same ones from a seed, whole resources, and as alike as real ones, not more."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from coffre.bench.fhir_records import FhirRecord, compression, fhir_records


@pytest.fixture(scope="module")
def records() -> list[FhirRecord]:
    return list(islice(fhir_records(1), 3000))


def test_a_seed_gives_the_same_records_and_another_seed_others(records: list[FhirRecord]) -> None:
    assert list(islice(fhir_records(1), 100)) == records[:100]
    assert not {record.data for record in islice(fhir_records(2), 100)} & {record.data for record in records}


def test_each_record_is_a_resource_under_its_own_name(records: list[FhirRecord]) -> None:
    kinds = set()
    for record in records:
        resource = json.loads(record.data)
        kinds.add(resource["resourceType"])
        assert record.key == f"fhir/{resource['resourceType']}/{resource['id']}.json"
    assert kinds == {"Condition", "Encounter", "MedicationRequest", "Observation", "Procedure"}
    assert len({record.key for record in records}) == len({record.data for record in records}) == len(records)


def test_they_are_of_the_published_size_and_compress_like_real_ones(records: list[FhirRecord]) -> None:
    found = compression([record.data for record in records])
    assert found.records == len(records)
    assert 1200 < found.mean_bytes < 1500
    assert 1.8 < found.alone < 2.3
    assert 10 < found.bulk < 15


def test_compression_is_plaintext_over_ciphertext() -> None:
    same = compression([b"a" * 1000] * 10)
    assert same.mean_bytes == 1000
    assert same.bulk > same.alone > 10
    assert "1000 bytes" in str(same)
